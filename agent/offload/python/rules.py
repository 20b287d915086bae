# Functions that a policy has called elsewhere: which they are, and how each is caught. Behind functions.py.
import fnmatch
import re
import types

LIBRARY = ("asyncio", "uvloop", "importlib", "_frozen_importlib", "_frozen_importlib_external", "threading", "_thread",
           "concurrent", "queue", "_queue", "selectors", "contextvars", "_contextvars", "_asyncio", "signal", "_signal",
           "weakref", "_weakref", "_weakrefset", "unblock", "builtins", "gc", "sys")


class Rule:
    def __init__(self, action, most, pattern):
        self.action, self.pattern = action, pattern
        self.label = f"{action}({most})" if most else action
        self.plain = not set("*?[") & set(pattern)
        self.fits = pattern.__eq__ if self.plain else re.compile(fnmatch.translate(pattern)).match
        self.prefix = re.split(r"[*?\[]", pattern)[0]
        self.fitted = 0
        self.among = []  # modules that it names without naming anything in them
        if action == "thread":
            self.run, self.pool = in_thread, pool_of(Threads, most, min(32, (os.cpu_count() or 1) + 4))
        elif action == "process":
            self.run, self.pool = in_process, pool_of(Processes, most, os.cpu_count() or 1)
        elif action == "fork":
            self.run, self.pool = in_fork, None


class Function:
    def __init__(self, module, path):
        self.module, self.path = module, path
        self.name = f"{module}.{path}"
        self.changes = False  # what it is called with: a process has said so


pools = []
shared = {}


def pool_of(kind, most, otherwise):
    """A rule without a number shares the others' of its kind."""
    if not most and kind in shared:
        return shared[kind]
    pool = kind(most or otherwise)
    pools.append(pool)
    if not most:
        shared[kind] = pool
    return pool


def forget():
    """A child that the program has forked has none of them."""
    gate.reset()
    for pool in pools:
        if isinstance(pool, Processes):
            for worker in pool.idle:
                os.close(worker.to)
                os.close(worker.back)
        pool.reset()


def finish():
    inline()
    tell_nearest()
    for pool in pools:
        if isinstance(pool, Threads):
            pool.finish()


def names_of(module):
    """A module's own name and its ends: pkg.jobs is known as jobs as well; the program by its file's name."""
    parts = module.split(".")
    names = [".".join(parts[i:]) for i in range(len(parts))]
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            names += names_of(spec.name.removesuffix(".__main__"))
        elif path:
            names.append(os.path.basename(path).partition(".")[0])
    return names


def rule_for(module, path):
    """The first that fits; an exception comes before all others."""
    names = [f"{name}.{path}" for name in names_of(module)]
    found = None
    for rule in rules_in_order:
        if any(rule.fits(name) for name in names):
            if rule.action == "except":
                tell("rule", rule.pattern, rule.label, "", 1)
                return None
            found = found or rule
    return found


def static(owner, name):
    """As it stands there, without asking anybody."""
    if isinstance(owner, type):
        for base in owner.__mro__:
            if name in vars(base):
                return vars(base)[name]
        return None
    return vars(owner).get(name) if isinstance(owner, types.ModuleType) else None


def lookup(module, path):
    found = module
    for name in path.split("."):
        found = static(found, name) if found is not None else None
    return found


def plain_of(value):
    """The function in what stands for it."""
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value


GENERATES = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def refusal(value):
    """Why its calls cannot be caught; None: they can."""
    if isinstance(value, types.FunctionType):
        return "its body runs when it is awaited or iterated" if value.__code__.co_flags & GENERATES else None
    if isinstance(value, type):
        return "is a class: name its __init__ or __new__"
    if isinstance(value, functools._lru_cache_wrapper):
        return "is cached (lru_cache): name a function that it calls"
    if isinstance(value, functools.partial):
        return "is a partial: name its function"
    if isinstance(value, types.WrapperDescriptorType):
        return "is a slot of a C type, called without its name"
    address = definition(value) if isinstance(
        value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType)) else 0
    if not address:
        return f"is a {type(value).__name__}, no function"
    return None if writable(address) else "is read-only in memory"


def writable(address):
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, _, rest = line.partition("-")
            if int(begin, 16) <= address < int(rest.split()[0], 16):
                return rest.split()[1][1] == "w"
    return False


hooked = set()


def other_code(value):
    """Code in the function's place: the interpreter enters `__init__`, and on 3.11 all functions, by their code."""
    code = value.__code__
    clone = types.FunctionType(code, value.__globals__, value.__name__, value.__defaults__, value.__closure__)
    clone.__kwdefaults__ = value.__kwdefaults__
    clone.__qualname__, clone.__module__ = value.__qualname__, value.__module__
    return clone


def take_code(value, clone, call):
    def template(*arguments, **names): function = 987654321; return function(arguments, names)
    code, own = template.__code__, value.__code__
    units = len(code.co_code) // 2
    lines = b"".join(bytes((0xe8 | min(8, units - i) - 1, 0)) for i in range(0, units, 8))  # the first line, no columns
    if not hasattr(value, "__wrapped__"):
        value.__wrapped__ = clone
    value.__code__ = code.replace(
        co_consts=tuple(call if c == 987654321 else c for c in code.co_consts), co_freevars=own.co_freevars,
        co_name=own.co_name, co_qualname=own.co_qualname, co_filename=own.co_filename,
        co_firstlineno=own.co_firstlineno, co_linetable=lines)


def catch(rule, module, path, value):
    function = Function(module, path)
    kept = plain_of(value)
    why = refusal(kept)
    if why:
        return why
    key = definition(kept) or id(kept)
    if key in hooked:
        return None

    def dispatch(call, arguments, names):
        return rule.run(rule, function, call, arguments, names)
    clone = None
    if isinstance(kept, types.FunctionType) and (sys.version_info < (3, 12) or kept.__name__ == "__init__"):
        clone = other_code(kept)
    call = hook(kept, dispatch, rule.action != "thread", function.name, rule.label, clone)
    if not call:
        return "is one too many"
    hooked.add(key)
    if clone:
        take_code(kept, clone, call)
    rule.fitted += 1
    tell("rule", rule.pattern, rule.label, "", 1)
    return None


def consider(module, path, value, exact):
    rule = rule_for(module.__name__, path)
    if not rule or rule.action == "inline":
        if rule:
            tell("rule", rule.pattern, rule.label, "", 1)
        return
    if module.__name__.partition(".")[0] in LIBRARY:
        why = "moving itself needs it"
    elif rule.action != "thread" and path.endswith(".__init__"):
        why = "it fills an object, which would be lost"
    else:
        why = catch(rule, module.__name__, path, value)
    if why and exact:
        tell("rule", rule.pattern, rule.label, "", 1)
        tell("refused", f"{module.__name__}.{path}", rule.label, why, 1)


def own_members(module):
    """Functions, and the methods of classes, that are defined there."""
    homes = (module.__name__, "_" + module.__name__)
    todo = [("", vars(module))]
    while todo:
        prefix, members = todo.pop()
        for name, value in list(members.items()):
            if isinstance(value, type):
                if value.__module__ in homes and prefix.count(".") < 3 and value.__name__ == name:
                    todo.append((f"{prefix}{name}.", vars(value)))
            elif prefix or getattr(value, "__module__", None) in homes:
                yield prefix + name, value


def sweep(name, module):
    known = names_of(name)
    for rule in rules_in_order:
        if rule.action == "except":
            continue
        for begin in known if rule.plain else ():
            if rule.pattern.startswith(begin + "."):
                path = rule.pattern[len(begin) + 1:]
                value = lookup(module, path)
                if value is not None:
                    consider(module, path, value, True)
                else:
                    rule.among.append((begin, module))
        if not rule.plain and any(fits_prefix(begin + ".", rule.prefix, name) for begin in known):
            for path, value in own_members(module):
                if callable(plain_of(value)) and any(rule.fits(f"{begin}.{path}") for begin in known):
                    consider(module, path, value, False)


def fits_prefix(begin, prefix, name):
    if not prefix:  # from anywhere: not from Python itself
        return name.partition(".")[0] not in sys.stdlib_module_names or name == "__main__"
    return begin.startswith(prefix) or prefix.startswith(begin)


def tell_nearest():
    """For rules that fit nothing."""
    import difflib
    for rule in rules_in_order:
        if rule.fitted or not rule.plain:
            continue
        names = [f"{begin}.{path}" for begin, module in rule.among for path, value in own_members(module)] or [
            f"{name}.{rule.pattern.rpartition('.')[2]}" for name in list(sys.modules)
            if name.partition(".")[0] not in sys.stdlib_module_names]
        found = difflib.get_close_matches(rule.pattern, names, 1)
        if found:
            tell("nearest", rule.pattern, rule.label, found[0], 1)


seen = set()


def imported():
    """Modules that are new, and whole."""
    for name in [name for name in sys.modules if name not in seen]:
        module = sys.modules.get(name)
        if not isinstance(module, types.ModuleType) or name == "__mp_main__":
            seen.add(name)
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            continue
        seen.add(name)
        try:
            sweep(name, module)
        except Exception as error:
            tell("note", "", "", f"rules of functions: {name}: {error}"[:60], 1)


rules_in_order = [Rule(action, int(most), pattern) for action, most, pattern in
                  (line.split(" ", 2) for line in rules().splitlines() if not line.startswith("yield "))]

threading._register_atexit(finish)
os.register_at_fork(after_in_child=forget)
imported()
