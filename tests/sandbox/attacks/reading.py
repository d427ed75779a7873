"""Attacks on what is to be known and changed outside: files, variables, other runs, the system's own settings."""

from __future__ import annotations

from sandbox.attack import Attack

EVERYWHERE = """
def everywhere(depth=3):
    queue = ["/"]
    while queue:
        folder = queue.pop()
        yield folder
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        if folder.count("/") < depth:
            queue += [e.path for e in entries if e.is_dir(follow_symlinks=False) and e.path not in ("/proc",)]
"""

READING = (
    Attack(
        "the users of the host",
        """
def users():
    text = read("/etc/passwd").decode()
    return text if len(text.splitlines()) > 3 and of_the_host("/etc/passwd") else (_ for _ in ()).throw(OSError("only its own"))
attempt("passwd", users)
for path in "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/shadow-", "/etc/ssh/ssh_host_ed25519_key":
    attempt(path, lambda: read(path))
""",
    ),
    Attack(
        "the host's own files",
        """
import sys
for path in "/root", "/home", "/var/log", "/var/lib/dpkg", "/run", "/boot", "/srv", "/mnt", "/opt", TARGET["home"]:
    try:
        names = os.listdir(path)
    except OSError as error:
        print("kept from", path, error)
        continue
    needed = TARGET["environment"], sys.base_prefix
    inside = [name for name in names if any(own.startswith(f"{path}/{name}") for own in needed)]
    if set(names) - set(inside) and of_the_host(path):
        gained(path, names)
""",
    ),
    Attack(
        "a file in the temporary folder",
        """
for name in "folder", "readable", "writable":
    attempt("listing", lambda: os.listdir(TARGET[name]))
    attempt("reading", lambda: read(TARGET[name]))
    attempt("writing", lambda: append(TARGET[name], b"changed"))
    attempt("truncating", lambda: os.truncate(TARGET[name], 0))
    attempt("renaming", lambda: os.rename(TARGET[name], TARGET[name] + "2"))
    attempt("linking", lambda: os.link(TARGET[name], "stolen"))
    attempt("rights", lambda: set_mode(TARGET[name], 0o600))
    attempt("owner", lambda: take_over(TARGET[name]))
    attempt("removing", lambda: os.unlink(TARGET[name]))
for action in os.mkdir, os.mkfifo, lambda path: os.symlink("x", path), lambda path: open(path, "w"):
    attempt("making", lambda: action(TARGET["folder"] + "/" + TARGET["name"]))
""",
    ),
    Attack(
        "the times and the extended attributes of the host's files",
        """
attempt("times", lambda: touch(TARGET["readable"]))
for name in "readable", "writable", "folder":
    attempt("attribute", lambda: os.setxattr(TARGET[name], "user.x", b"1"))
for path in TARGET["environment"], os.path.realpath(TARGET["environment"] + "/bin/python"):
    attempt("times", lambda: touch(path))
    attempt("attribute", lambda: os.setxattr(path, "user.x", b"1"))
""",
    ),
    Attack(
        "shared memory of the host",
        "attempt('shm', lambda: read(TARGET['shared_memory']))\nattempt('w', lambda: append(TARGET['shared_memory'], b'x'))",
    ),
    Attack(
        "a System V segment of the host",
        """
libc.shmat.restype = ctypes.c_void_p
address = libc.shmat(TARGET["segment"], None, 0o10000)
if address != ctypes.c_void_p(-1).value:
    gained("the segment", ctypes.string_at(address, 20))
if libc.shmctl(TARGET["segment"], 0, None) == 0:
    gained("removing it")
""",
    ),
    Attack(
        "queues and semaphores that outlive their run",
        """
for name, arguments in (("semget", (TARGET["ipc_key"], 1, 0o1666)), ("msgget", (TARGET["ipc_key"], 0o1666))):
    try:
        print(name, call(name, *arguments))
    except OSError as error:
        print("kept from", name, error)
attribute = (ctypes.c_long * 8)(0, 10, 100, 0)
try:
    queue = call("mq_open", TARGET["name"].encode(), os.O_CREAT | os.O_RDWR, 0o666, attribute)
    print("a queue that will be looked for", queue)
except OSError as error:
    print("kept from", error)
""",
    ),
    Attack(
        "the worker's variables",
        """
import subprocess
if TARGET["secret"] in str(dict(os.environ)).replace(os.environ["ATTACK_TARGET"], ""):
    gained("the environment")
if set(os.environ) - {"PATH", "PTC_EVENTS", "ATTACK", "ATTACK_TARGET", "LC_CTYPE"}:
    gained("more variables than were given", sorted(os.environ))
""",
    ),
    Attack(
        "the variables and command lines of all processes",
        """
own = {os.getpid()}
for process in processes():
    if process not in own:
        looking_for_secrets([f"/proc/{process}/{name}" for name in ("environ", "cmdline", "maps", "mountinfo")])
        try:
            command = read(f"/proc/{process}/cmdline")
        except OSError:
            continue
        if TARGET["folder"].encode() in command or b"celery" in command or TARGET["source"].encode() in command:
            gained("the command line of a stranger", command)
""",
    ),
    Attack(
        "the first process",
        """
looking_for_secrets(["/proc/1/environ", "/proc/1/cmdline", "/proc/1/root" + TARGET["readable"]])
for name in "environ", "mem", "maps", "auxv", "io", "pagemap", "stack", "personality", "timers":
    attempt(name, lambda: read(f"/proc/1/{name}"))
for name in "root", "cwd", "fd", "exe", "map_files", "ns":
    attempt(name, lambda: os.listdir(f"/proc/1/{name}/"))
""",
    ),
    Attack(
        "the parent and the worker",
        """
for process in {os.getppid(), TARGET["pid"]} - {0}:
    for name in "environ", "mem", "maps", "auxv", "io", "pagemap":
        attempt(f"{name} of {process}", lambda: read(f"/proc/{process}/{name}"))
    for name in "root", "cwd", "fd", "map_files":
        attempt(f"{name} of {process}", lambda: os.listdir(f"/proc/{process}/{name}/"))
""",
    ),
    Attack(
        "settings of the kernel",
        """
for name in TARGET["kernel"]:
    attempt(name, lambda: append(f"/proc/sys/{name}"))
for folder, _, files in os.walk("/proc/sys"):
    for name in files:
        path = os.path.join(folder, name)
        try:
            gained(path, append(path))
        except OSError:
            pass
""",
    ),
    Attack(
        "switches of the kernel",
        """
for path in (
    "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/acpi/wakeup", "/proc/scsi/scsi",
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/timer_list", "/sys/power/state",
    "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling",
):
    if not (os.path.exists(path) and os.path.samestat(os.stat(path), os.stat("/dev/null"))):  # Docker hides them so
        attempt(path, lambda: append(path))
""",
    ),
    Attack(
        "memory and symbols of the kernel",
        """
for path in "/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/vmallocinfo", "/dev/kmsg", "/dev/mem", "/dev/port":
    attempt(path, lambda: read(path))
def symbols():
    addresses = {line.split()[0] for line in read("/proc/kallsyms").splitlines()[:20]}
    return addresses if addresses - {b"0000000000000000"} else (_ for _ in ()).throw(OSError("only zeros"))
attempt("kallsyms", symbols)
refused("syslog", 3, ctypes.create_string_buffer(100), 100)
""",
    ),
    Attack(
        "control groups",
        """
for path in "/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified":
    for name in "release_agent", "cgroup.procs", "notify_on_release", "tasks":
        attempt(f"{path}/{name}", lambda: append(f"{path}/{name}"))
    attempt(f"a group in {path}", lambda: os.mkdir(f"{path}/{TARGET['name']}"))
for folder, _, files in os.walk("/sys"):
    for name in files:
        try:
            gained(name, append(os.path.join(folder, name)))
        except OSError:
            pass
    if folder.count("/") > 4:
        break
""",
    ),
    Attack(
        "descriptors of the worker",
        """
kind, _, number = os.environ["PTC_EVENTS"].partition(":")
known = {0, 1, 2, int(number) if kind == "fd" else -1}
for descriptor in range(4096):
    if descriptor not in known:
        try:
            gained(f"descriptor {descriptor}", os.fstat(descriptor))
        except OSError:
            pass
attempt("the one that it left open", lambda: os.pread(TARGET["inherited"], 100, 0))
""",
    ),
    Attack(
        "the worker's program",
        """
import glob, sys
sys.path.insert(0, os.path.dirname(TARGET["source"]))
try:
    import ptc_worker
    gained("importing the worker", ptc_worker.__path__)
except (ImportError, OSError) as error:
    print("kept from", error)
for name in "", "/tasks.py", "/settings.py", "/../.git/config", "/../pyproject.toml":
    attempt("reading" + name, lambda: read(TARGET["source"] + name))
    attempt("writing" + name, lambda: append(TARGET["source"] + name))
attempt("listing", lambda: os.listdir(TARGET["source"]))
""",
    ),
    Attack(
        "the environment's programs",
        """
import sys
found = [TARGET["environment"] + "/bin/python", TARGET["environment"] + "/pyvenv.cfg"]
for folder, folders, files in os.walk(TARGET["environment"]):
    found += [os.path.join(folder, name) for name in files[:2]] + [folder]
for path in found:
    for action in (
        append,
        os.unlink,
        lambda path: set_mode(path, 0o777),
        lambda path: os.rename(path, path + "2"),
        lambda path: open(os.path.join(path, TARGET["name"]), "w"),
        lambda path: os.truncate(path, 0),
    ):
        try:
            gained(path, action(path))
        except OSError:
            pass
""",
    ),
    Attack(
        "poisoned byte-code",
        """
import importlib.util, _pytest
found = []
for folder, _, files in os.walk(os.path.dirname(_pytest.__file__)):
    found += [os.path.join(folder, name) for name in files if name.endswith(".pyc")]
assert found
for path in found:
    for action in append, os.unlink, touch, lambda path: os.replace("attack.py", path):
        try:
            gained(path, action(path))
        except OSError:
            pass
""",
    ),
    Attack(
        "the installer's cache and other environments",
        """
for path in TARGET["cache"], TARGET["cache"] + "/uv", TARGET["cache"] + "/environments":
    try:
        names = set(os.listdir(path)) - {"environments", os.path.basename(TARGET["environment"])}
        if names:
            gained("listing " + path, names)
    except OSError as error:
        print("kept from", error)
    try:
        open(f"{path}/{TARGET['name']}", "w")
        print("a file, and the host must not have it")
    except OSError as error:
        print("kept from", error)
attempt("the lock", lambda: read(TARGET["environment"] + ".lock"))
""",
    ),
    Attack(
        "anywhere that can be written",
        EVERYWHERE
        + """
allowed = ("/tmp", "/dev/shm", "/dev/pts", "/var/tmp", os.getcwd(), os.path.dirname(os.getcwd()), "/proc")
for folder in everywhere():
    if not any(folder == own or folder.startswith(own + "/") for own in allowed if own != "/"):
        try:
            os.close(os.open(f"{folder}/{TARGET['name']}", os.O_CREAT | os.O_WRONLY))
            gained("a file in " + folder)
        except OSError:
            pass
""",
    ),
    Attack(
        "devices",
        """
harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr", "core"}
try:
    names = os.listdir("/dev")
except OSError:
    names = []
if TARGET["image"]:
    harmless.add("mqueue")  # of a namespace of its own
for name in {*names, "mem", "kvm", "fuse", "vda", "sda", "loop0", "loop-control", "vsock", "net/tun", "hwrng", "autofs"} - harmless:
    for flags in os.O_RDONLY, os.O_WRONLY:
        try:
            gained(name, os.open(f"/dev/{name}", flags | os.O_NONBLOCK | os.O_NOCTTY))
        except OSError:
            pass
""",
    ),
    Attack(
        "ways around the root directory",
        """
looking_for_secrets([
    prefix + TARGET["readable"]
    for prefix in ("", "/..", "/proc/self/root", "/proc/self/cwd" + "/.." * 30, "/proc/1/root", "/proc/self/task/1/root")
])
here = os.open(".", os.O_RDONLY)
for _ in range(30):
    try:
        here = os.open("..", os.O_RDONLY, dir_fd=here)
    except OSError as error:
        print("kept from ..", error)
        break
try:
    os.stat(TARGET["readable"].lstrip("/"), dir_fd=here)
    gained("seeing", os.open(TARGET["readable"].lstrip("/"), os.O_RDONLY, dir_fd=here))
except OSError as error:
    print("kept from", error)
for path in "/old", "/.old", "/oldroot", "/newroot", "/host":
    attempt(path, lambda: os.listdir(path))
""",
    ),
    Attack(
        "sockets that lie in the file system",
        """
import socket, stat
for folder, _, files in os.walk("/"):
    for name in files:
        path = os.path.join(folder, name)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                gained("a socket", path)
        except OSError:
            pass
    if folder.startswith(("/proc", "/usr", "/sys")):
        _.clear()
""",
    ),
)
