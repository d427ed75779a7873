"""Attacks over the network and by sockets: out of the sandbox, and into it."""

from __future__ import annotations

from sandbox.attack import FINISHED, Attack, Scene

UNREACHABLE = """
import errno, socket, struct
NO_WAY = {errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.ECONNREFUSED, errno.EADDRNOTAVAIL,
          errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EHOSTUNREACH}
def reach(what, family, kind, address, protocol=0, send=None):
    '''Silence is no wall: only an answer of our own kernel counts as one.'''
    try:
        with socket.socket(family, kind, protocol) as door:
            for option in 20, 21:  # SO_RCVTIMEO, SO_SNDTIMEO
                door.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 2, 0))
            if send:
                door.sendto(*send, address)
            else:
                door.connect(address)
            gained(what, door.recv(100) if kind == socket.SOCK_STREAM else "sent")
    except OSError as error:
        if error.errno not in NO_WAY:
            gained(what, error)
        print("kept from", what, error)
"""


def _loopback_as_promised(scene: Scene) -> None:
    assert (b"it works" in scene.ran.stdout) is scene.way.loopback, scene.said
    assert FINISHED.encode() in scene.ran.stdout, scene.said


NETWORK = (
    Attack(
        "the worker's servers on this machine",
        UNREACHABLE
        + """
for address in TARGET["addresses"]:
    reach(address, socket.AF_INET, socket.SOCK_STREAM, (address, TARGET["ipv4"]))
    reach(address + " by a mapped address", socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:" + address, TARGET["ipv4"]))
reach("::1", socket.AF_INET6, socket.SOCK_STREAM, ("::1", TARGET["ipv6"]))
""",
    ),
    Attack(
        "TCP to the world",
        UNREACHABLE
        + "reach('TCP', socket.AF_INET, socket.SOCK_STREAM, ('1.1.1.1', 443))\n"
        + "reach('SSH', socket.AF_INET, socket.SOCK_STREAM, ('192.0.2.1', 22))",
    ),
    Attack(
        "TCP that sends with its first packet",
        UNREACHABLE
        + """
for address, port in (("1.1.1.1", 443), *((own, TARGET["ipv4"]) for own in TARGET["addresses"])):
    reach("fast open", socket.AF_INET, socket.SOCK_STREAM, (address, port), 0, (b"x", socket.MSG_FASTOPEN))
""",
    ),
    Attack(
        "protocols beside TCP",
        UNREACHABLE
        + """
for name, kind, protocol in ("MPTCP", 1, 262), ("SCTP", 1, 132), ("SCTP", 5, 132), ("DCCP", 6, 33):
    for address in TARGET["addresses"]:
        reach(name, socket.AF_INET, kind, (address, TARGET["ipv4"]), protocol)
""",
    ),
    Attack(
        "UDP to the world",
        UNREACHABLE
        + """
for address in ("1.1.1.1", 53), ("8.8.8.8", 443), ("192.0.2.1", 123):
    reach("UDP", socket.AF_INET, socket.SOCK_DGRAM, address, 0, (b"x",))
""",
    ),
    Attack(
        "UDP to everybody",
        UNREACHABLE
        + """
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in "255.255.255.255", "224.0.0.251", "192.0.2.255":
            try:
                gained(address, door.sendto(b"x", (address, 5353)))
            except OSError as error:
                print("kept from", address, error)
except OSError as error:
    print("kept from", error)
""",
    ),
    Attack(
        "names of the world",
        """
import socket
attempt("a name", lambda: socket.getaddrinfo("example.com", 443))
def servers():
    text = read("/etc/resolv.conf")
    mine = TARGET["image"] and text == b"nameserver 127.0.0.1\\n"  # an engine writes one; nobody listens there
    return text if not mine else (_ for _ in ()).throw(OSError("only its own"))
attempt("the host's name servers", servers)
""",
    ),
    Attack(
        "IPv6",
        UNREACHABLE
        + """
for address in "2606:4700:4700::1111", "fd00::2":
    reach(address, socket.AF_INET6, socket.SOCK_STREAM, (address, 443))
    reach(address, socket.AF_INET6, socket.SOCK_DGRAM, (address, 53), 0, (b"x",))
""",
    ),
    Attack(
        "the cloud's own service",
        UNREACHABLE
        + """
for address in ("169.254.169.254", 80), ("169.254.170.2", 80), ("100.100.100.200", 80):
    reach("metadata", socket.AF_INET, socket.SOCK_STREAM, address)
reach("metadata", socket.AF_INET6, socket.SOCK_STREAM, ("fd00:ec2::254", 80))
""",
    ),
    Attack(
        "raw sockets and ping",
        """
import socket
for family, kind, protocol in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (2, 2, 1), (2, 10, 0)):
    attempt("raw", lambda: socket.socket(family, kind, protocol))
""",
    ),
    Attack(
        "packets of the wire",
        """
import socket
for kind in socket.SOCK_RAW, socket.SOCK_DGRAM:
    attempt("packets", lambda: socket.socket(socket.AF_PACKET, kind, socket.htons(3)))
""",
    ),
    Attack(
        "the hypervisor",
        """
import socket
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM))
""",
    ),
    Attack(
        "families that nobody needs",
        """
import socket
needed = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
for family in set(range(46)) - needed:
    for kind in 1, 2, 3, 5:
        try:
            gained(f"family {family}", socket.socket(family, kind))
        except OSError:
            pass
""",
    ),
    Attack(
        "the host's interfaces",
        """
import socket
try:
    names = {name for _, name in socket.if_nameindex()} - {"lo"}
    if names:
        gained("interfaces", names)
except OSError as error:
    print("kept from", error)
for path in "/proc/net/tcp", "/proc/net/unix", "/proc/net/route", "/proc/net/arp":
    try:
        text = read(path, 100_000).decode()
    except OSError as error:
        print("kept from", path, error)
        continue
    if TARGET["folder"] in text or f":{TARGET['ipv4']:04X}" in text or "eth0" in text:
        gained(path, text)
""",
    ),
    Attack(
        "other kinds of netlink",
        """
import socket
for kind in 2, 4, 5, 6, 9, 10, 12, 16, 20, 21:
    try:
        door = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, kind)
    except OSError:
        continue
    if kind == 9:
        attempt("listening to audit", lambda: door.bind((0, 1)))
""",
    ),
    Attack(
        "the network's own settings",
        """
import fcntl, socket, struct
try:
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
except OSError as error:
    print("kept from", error)
else:
    for code in 0x8914, 0x8916, 0x891C, 0x890B, 0x8924:  # flags, address, mask, route, hardware address
        attempt(hex(code), lambda: fcntl.ioctl(door, code, struct.pack("16sh14x", b"lo", 0)))
    attempt("a tunnel", lambda: os.open("/dev/net/tun", os.O_RDWR))
    attempt("priority", lambda: door.setsockopt(socket.SOL_SOCKET, 36, 1))
    attempt("larger buffers", lambda: door.setsockopt(socket.SOL_SOCKET, 32, 2**28))
""",
    ),
    Attack(
        "a Redis that listens on a socket file",
        UNREACHABLE
        + """
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET:
    try:
        with socket.socket(socket.AF_UNIX, kind) as door:
            door.connect(TARGET["unix"])
            gained("the socket", door.recv(100))
    except OSError as error:
        print("kept from", error)
""",
    ),
    Attack(
        "an abstract socket of the host",
        """
import socket
try:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(b"\\0" + TARGET["abstract"].encode())
        gained("the socket", door.recv(100))
except OSError as error:
    print("kept from", error)
try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.sendto(b"x", b"\\0" + TARGET["abstract"].encode())
        gained("sending")
except OSError as error:
    print("kept from", error)
""",
    ),
    Attack(
        "services that every machine has",
        """
import socket
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
             "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/journal/stdout", "/dev/log",
             "/run/nscd/socket", "/tmp/.X11-unix/X0", "/run/snapd.socket"):
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(path)
            gained(path)
    except OSError as error:
        print("kept from", path, error)
""",
    ),
    Attack(
        "its own loopback, where promised",
        """
import socket
try:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].sendall(b"it works")
        print(client.recv(100).decode())
except OSError as error:
    print("kept from", error)
""",
        _loopback_as_promised,
    ),
    Attack(
        "a server for the world",
        """
import socket, time
for family, address in (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"):
    try:
        door = socket.socket(family)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address, TARGET["visited"]))
        door.listen()
        door.settimeout(0.5)
        gained("a visitor", door.accept())
    except (OSError, TimeoutError) as error:
        print("kept from", error)
""",
    ),
    Attack(
        "a pair of sockets works",
        """
import socket, asyncio
near, far = socket.socketpair()
near.sendall(b"x")
assert far.recv(1) == b"x"
async def main():
    process = await asyncio.create_subprocess_exec("/bin/true")
    assert await process.wait() == 0
asyncio.run(main())
""",
    ),
)
