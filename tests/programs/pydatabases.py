"""Clients of databases in tasks, beside a ticker, as pyseeds.py: pydatabases.py CASE PORT [PID]. Two tasks have a connection each, two share one."""
import asyncio
import os
import signal
import sys
import threading
import time

import pyseeds

CASE, PORT = sys.argv[1], int(sys.argv[2])
if CASE == "postgres":
    import psycopg2
elif CASE == "mysql":
    import MySQLdb
elif CASE == "ldap":
    import ldap


def ask(connection, text):
    cursor = connection.cursor()
    cursor.execute(text)
    found = cursor.fetchall()
    cursor.close()
    return [int(row[-1]) for row in found]


async def each(connect, text, share):
    """As many tasks as there are texts."""
    shared = connect() if share else None

    async def work(one):
        return ask(shared or connect(), one)
    return await asyncio.gather(*[work(one) for one in text])


async def transacts(connect):
    """Two tasks share a connection, and the one that writes has another besides: how many of its rows are there in the end."""
    connection, other = connect(), connect()
    cursor = connection.cursor()
    cursor.execute("create temporary table written(a integer)")
    connection.commit()

    async def writes():
        cursor.execute("insert into written values(1)")
        ask(other, "select 1")
        time.sleep(0.15)
        connection.commit()

    async def takes_back():
        connection.rollback()
    writing = asyncio.create_task(writes())
    await asyncio.sleep(0.05)
    await takes_back()
    await writing
    return ask(connection, "select count(*) from written")


async def postgres():
    def connect():
        return psycopg2.connect(host="127.0.0.1", port=PORT, user="postgres", dbname="postgres")
    text = [f"select pg_sleep(0.2), {i}" for i in range(3)]
    found = await each(connect, text, False), await each(connect, text, True), await transacts(connect)
    try:
        ask(connect(), "select nothing")
    except psycopg2.Error as error:
        return found, type(error).__name__


async def mysql():
    def connect():
        return MySQLdb.connect(host="127.0.0.1", port=PORT, user="tester", passwd="tester", db="test")
    text = [f"select sleep(0.2), {i}" for i in range(3)]
    found = await each(connect, text, False), await each(connect, text, True), await transacts(connect)
    try:
        ask(connect(), "select nothing")
    except MySQLdb.Error as error:
        return found, type(error).__name__, error.args[0]


async def asks_ldap():
    """Of a server that is stopped for a moment."""
    server = int(sys.argv[3])

    def ask():
        connection = ldap.initialize(f"ldap://127.0.0.1:{PORT}")
        connection.simple_bind_s("cn=admin,dc=test", "secret")
        return connection.whoami_s(), connection.search_s("dc=test", ldap.SCOPE_BASE)[0][0]

    async def work():
        return ask()
    os.kill(server, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (server, signal.SIGCONT)).start()
    return await asyncio.gather(work(), work())


if __name__ == "__main__":
    asyncio.run(pyseeds.main([{"postgres": postgres, "mysql": mysql, "ldap": asks_ldap}[CASE]]))
