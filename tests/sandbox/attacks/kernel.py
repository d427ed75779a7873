"""Attacks on the kernel: calls that make, leave or change walls, or that have been the way through them."""

from __future__ import annotations

from sandbox.attack import Attack

NAMESPACES = {
    "mount": 0x00020000,
    "control group": 0x02000000,
    "host name": 0x04000000,
    "IPC": 0x08000000,
    "user": 0x10000000,
    "process": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}

IN_32_BITS = r"""
import mmap, platform
code = mmap.mmap(-1, 4096, prot=7)
# push rbx; mov eax,edi; mov ebx,esi; mov ecx,edx -> via xchg; int 0x80; pop rbx; ret
code.write(bytes.fromhex("53" "89f8" "89f3" "87d1" "cd80" "5b" "c3"))
enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(
    ctypes.addressof(ctypes.c_char.from_buffer(code))
)
def old(what, number, *arguments):
    child = os.fork()
    if child == 0:
        result = enter(number, *arguments, *[0] * (3 - len(arguments)))
        if result >= 0 or -result not in REFUSALS:
            gained(what, result)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(what, "ended with", status)
"""

KERNEL = (
    Attack(
        "is someone else than root",
        """
def root_outside():
    for line in read("/proc/self/uid_map").decode().splitlines():
        inside, outside, length = map(int, line.split())
        if outside == 0 and inside <= os.getuid() < inside + length:
            return line
    raise OSError("not root outside")
if os.getuid() == 0 or os.geteuid() == 0:
    attempt("root outside", root_outside)
for identity in (0, 0, 0), (-1, 0, -1):
    attempt(f"becoming {identity}", lambda: os.setresuid(*identity))
    attempt(f"group {identity}", lambda: os.setresgid(*identity))
attempt("more groups", lambda: os.setgroups([0, 4, 27, 999]))
if 0 in os.getgroups() or os.getgid() == 0:
    gained("root's group", os.getgroups())
""",
    ),
    Attack(
        "capabilities",
        """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
if any(sets):
    gained("capabilities", [hex(word) for word in sets])
if libc.prctl(39, 0, 0, 0, 0) != 1:  # PR_GET_NO_NEW_PRIVS
    gained("a way to new privileges")
sets = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)
if libc.capset(header, sets) == 0:
    gained("capset")
if libc.prctl(47, 2, 21, 0, 0) == 0:
    gained("an ambient capability")
""",
    ),
    Attack(
        "programs that run as root",
        """
import glob, stat, subprocess
found = [path for folder in ("/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/usr/lib/dbus-1.0")
         for path in glob.glob(folder + "/*") if os.path.isfile(path) and os.stat(path).st_mode & stat.S_ISUID]
print(found)
for path in [*found, "/usr/bin/su", "/usr/bin/sudo"]:
    for command in ([path, "-c", "id -u"], [path, "id", "-u"], [path, "--version"]):
        try:
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
            if ran.stdout.strip() == b"0":
                gained(path, ran)
        except (OSError, subprocess.TimeoutExpired):
            pass
""",
    ),
    Attack(
        "a program of its own that runs as root",
        """
import shutil, subprocess
shutil.copy("/usr/bin/id", "mine")
for owner in 0, os.getuid():
    try:
        os.chown("mine", owner, owner)
        os.chmod("mine", 0o6755)
        if subprocess.run(["./mine", "-u"], capture_output=True).stdout.strip() == b"0" != str(os.getuid()).encode():
            gained("root")
        if owner == 0:
            gained("a file of root's")
    except OSError as error:
        print("kept from", error)
attempt("file capabilities", lambda: os.setxattr("mine", "security.capability", bytes(20)))
""",
    ),
    Attack(
        "device files of its own",
        """
import stat
for kind, number in (stat.S_IFCHR, (1, 1)), (stat.S_IFBLK, (254, 0)), (stat.S_IFCHR, (10, 200)):
    for folder in ".", "/tmp", "/dev/shm", "/dev":
        attempt(f"a device in {folder}", lambda: os.mknod(f"{folder}/device", kind | 0o666, os.makedev(*number)))
""",
    ),
    Attack(
        "mounts",
        """
for source, target, kind, flags in (
    (b"tmpfs", b"/tmp", b"tmpfs", 0), (b"proc", b".", b"proc", 0), (b"/", b"/tmp", b"", 4096),
    (b"none", b"/", b"", 32), (b"none", b"/proc/sys", b"", 32 | 4096), (b"overlay", b"/tmp", b"overlay", 0),
):
    refused("mount", source, target, kind, flags, None)
for path in b"/proc", b"/proc/sys", b"/tmp", b"/dev", b"/":
    refused("umount2", path, 2)
refused("pivot_root", b"/tmp", b"/tmp")
""",
    ),
    Attack(
        "mounts in the new way",
        """
refused("fsopen", b"tmpfs", 0)
refused("open_tree", -100, b"/", 1)
refused("move_mount", -100, b"/tmp", -100, b"/mnt", 0)
refused("mount_setattr", -100, b"/", 0, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32)
""",
    ),
    Attack(
        "another root directory",
        'attempt("chroot", lambda: os.chroot("/tmp"))\nattempt("here", lambda: os.chroot("."))',
    ),
    *(
        Attack(
            f"a {name} namespace",
            f"""
REFUSALS |= {{28}}  # ENOSPC: what `--disable-userns` answers
refused("unshare", {flag:#x})
refused("unshare", {flag | 0x10000000:#x})
""",
        )
        for name, flag in NAMESPACES.items()
    ),
    Attack(
        "a user namespace by clone",
        """
REFUSALS |= {28}
try:
    if (child := call("clone", 0x10000000 | 17, 0, 0, 0, 0)) == 0:
        os._exit(0)
    gained("clone", child)
except OSError as error:
    if error.errno not in REFUSALS:
        gained("reaching clone", error)
""",
    ),
    Attack(
        "a user namespace by clone3",
        """
REFUSALS |= {28}
try:
    if (child := call("clone3", (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)) == 0:
        os._exit(0)
    gained("clone3", child)
except OSError as error:
    if error.errno not in REFUSALS:
        gained("reaching clone3", error)
""",
    ),
    Attack(
        "the namespaces of others",
        """
for process in {"self", 1, os.getppid(), TARGET["pid"]} - {0}:
    for name in "user", "mnt", "net", "pid", "ipc", "uts", "cgroup":
        try:
            handle = os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY)
        except OSError:
            continue
        refused("setns", handle, 0)
refused("setns", os.open("/dev/null", os.O_RDONLY), 0)
""",
    ),
    Attack(
        "keys",
        """
refused("add_key", b"user", b"x", b"y", 1, -3)
refused("request_key", b"user", b"x", None, -3)
refused("keyctl", 0, -3, 1)
""",
    ),
    Attack(
        "programs in the kernel",
        'refused("bpf", 0, (ctypes.c_uint64 * 16)(), 128)\nrefused("bpf", 5, (ctypes.c_uint64 * 16)(), 128)',
    ),
    Attack("io_uring", 'refused("io_uring_setup", 8, (ctypes.c_uint32 * 30)())'),
    Attack(
        "userfaultfd",
        'refused("userfaultfd", 1)\nattempt("the device", lambda: os.open("/dev/userfaultfd", os.O_RDWR))',
    ),
    Attack(
        "performance counters", 'refused("perf_event_open", (ctypes.c_uint64 * 16)(1, 112), 0, -1, -1, 0)'
    ),
    Attack(
        "files by handle",
        """
refused("open_by_handle_at", -100, (ctypes.c_uint32 * 34)(8, 1, 2, 0), 0)
refused("name_to_handle_at", -100, b"/", (ctypes.c_uint32 * 34)(128), ctypes.byref(ctypes.c_int()), 0)
""",
    ),
    Attack(
        "a watch on all files",
        'refused("fanotify_init", 0, 0)\nrefused("fanotify_init", 0x200, 0)',
    ),
    Attack(
        "modules and another kernel",
        """
refused("init_module", b"", 0, b"")
refused("finit_module", -1, b"", 0)
refused("delete_module", b"x", 0)
refused("kexec_file_load", -1, -1, 0, b"", 0)
""",
    ),
    Attack(
        "the machine's name, time, swap, accounting and power",
        """
refused("sethostname", b"owned", 5)
refused("clock_settime", 0, (ctypes.c_long * 2)(0, 0))
refused("swapon", b"/tmp/x", 0)
refused("acct", b"/tmp/x")
refused("reboot", 0xfee1dead, 672274793, 0x89abcdef, 0)  # harmless: only turns Ctrl-Alt-Del on
refused("quotactl", 0, b"/", 0, 0)
""",
    ),
    Attack("ports of the hardware", 'refused("iopl", 3)\nattempt("port", lambda: read("/dev/port"))'),
    Attack(
        "memory of other processes and nodes",
        """
refused("move_pages", 1, 0, 0, 0, 0, 0)
refused("migrate_pages", 1, 0, 0, 0)
refused("process_madvise", -1, 0, 0, 0, 0)
""",
    ),
    Attack(
        "the same calls by the door for 32 bits",
        IN_32_BITS
        + """
old("unshare", 310, 0x10000000)
old("ptrace", 26, 0, 0, 0)
old("mount", 21)
old("keyctl", 288, 0, 0, 0)
old("bpf", 357, 0, 0, 0)
old("a network socket", 359, 2, 1, 0)
old("a packet socket", 359, 17, 3, 0)
old("io_uring_setup", 425, 8, 0, 0)
old("perf_event_open", 336, 0, 0, 0)
""",
    ),
    Attack(
        "the same calls by the numbers of x32",
        """
for name in "ptrace", "unshare", "mount", "keyctl", "bpf", "setns":
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(CALLS[name][0] | 0x40000000), ctypes.c_long(0), 0, 0, 0, 0)
    if result >= 0 or ctypes.get_errno() not in REFUSALS:
        gained(name, (result, ctypes.get_errno()))
""",
    ),
)
