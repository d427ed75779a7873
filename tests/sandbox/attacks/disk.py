"""Attacks on room for files: bytes, numbers, names, depth."""

from __future__ import annotations

from sandbox.attack import TOO_MUCH_MEMORY, Attack, too_much_on_disk
from sandbox.ways import DISK_MB, MEMORY_MB

FILE_MB = 64

FILL = """
def fill(folder, number, size):
    made = 0
    for index in range(number):
        descriptor = os.open(f"{folder}/{TARGET['name']}-{index}", os.O_WRONLY | os.O_CREAT)
        while size - os.fstat(descriptor).st_size > 0:
            made += os.write(descriptor, b"x" * min(2**20, size - os.fstat(descriptor).st_size))
        os.close(descriptor)
        if made > LIMIT:
            gained("bytes on disk", made)
            break
    return made
def spread(folder, number, size):
    try:
        fill(folder, number, size)
    except OSError as error:
        print("kept from filling", folder, repr(error))
"""

DISK = (
    Attack(
        "memory in /dev/shm",
        f"LIMIT = {MEMORY_MB} * 2**20" + FILL + "spread('/dev/shm', 100, 2**25)",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "a file of ten gigabytes",
        f"""
written = 0
try:
    with open("big", "wb", buffering=0) as file:
        while written <= {FILE_MB} * 2**20:
            written += file.write(b"x" * 2**22)
    gained("bytes in one file", written)
except OSError as error:
    print("kept from more than", written, error)
""",
        too_much_on_disk,
    ),
    *(
        Attack(
            f"large files in {folder}",
            f"LIMIT = {2 * max(DISK_MB, MEMORY_MB)} * 2**20"
            + FILL
            + f"spread({folder!r}, 60, {FILE_MB} * 2**20 - 1)",
            too_much_on_disk,
        )
        for folder in (".", "/tmp")
    ),
    Attack(
        "files without number",
        """
made = 0
try:
    os.mkdir("many")
    while made < 200_000:
        os.close(os.open(f"many/{made}", os.O_CREAT | os.O_WRONLY))
        made += 1
    gained("files", made)
except OSError as error:
    print("kept from more than", made, error)
""",
        too_much_on_disk,
        seconds=4,
    ),
    Attack(
        "allocating a file without writing it",
        """
file = os.open("allocated", os.O_CREAT | os.O_WRONLY)
attempt("10 GB", lambda: os.posix_fallocate(file, 0, 10**10))
""",
    ),
    Attack(
        "a sparse file",
        """
file = os.open("sparse", os.O_CREAT | os.O_WRONLY)
attempt("10 GB of holes", lambda: os.truncate("sparse", 10**10))
attempt("a byte behind 10 GB", lambda: os.pwrite(file, b"x", 10**10))
""",
    ),
    Attack(
        "a tree deeper than anything can recurse",
        """
made = 0
try:
    while made < 1100:
        os.mkdir(TARGET["name"])
        os.chdir(TARGET["name"])
        made += 1
except OSError as error:
    print(error)
os.chmod(".", 0)
print("deep", made)
""",
        too_much_on_disk,
    ),
    *(
        Attack(
            f"files {where}",
            f"""
import time
held, kept = 0, []
try:
    {prepared}
    while held <= {2 * DISK_MB} * 2**20:
        kept.append(open(f"file-{{len(kept)}}", "wb", buffering=0))
        {removed}
        held += kept[-1].write(bytes(2**24))
    time.sleep(3)
    gained("bytes that nobody counts", held)
except OSError as error:
    print("kept from more than", held, error)
""",
            too_much_on_disk,
        )
        for where, prepared, removed in (
            ("that were removed and are still open", "pass", "os.unlink(kept[-1].name)"),
            (
                "deeper than a path can tell",
                "[(os.mkdir('d' * 200), os.chdir('d' * 200)) for _ in range(30)]",
                "pass",
            ),
        )
    ),
    Attack(
        "names as long as they may be, and no text",
        """
for letter in b"\\xff", b"\\n", b"\\\\":
    os.makedirs(b"/".join([letter * 255] * 10))
""",
    ),
)
