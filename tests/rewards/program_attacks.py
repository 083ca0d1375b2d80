"""Programs that try to get a reward, to escape, or to break the grader. Each must score 0 and leave the grader working.

Those that search for something (ESCAPES) print the right answer if they find it, so that 0 means they did not.
"""

from __future__ import annotations

from typing import Any

STDIN = {"type": "stdin", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "10 -4\n", "stdout": "6\n"}]}
FUNCTION = {
    "type": "function",
    "fn_name": "add",
    "tests": [{"args": [1, 2], "expected": 3}, {"args": [10, -4], "expected": 6}],
}
ASSERTS = {"type": "asserts", "entry_point": "add", "asserts": ["assert add(1, 2) == 3", "assert add(10, -4) == 6"]}
HONEST = {
    "stdin": (STDIN, "print(sum(map(int, input().split())))"),
    "function": (FUNCTION, "def add(a, b): return a + b"),
    "asserts": (ASSERTS, "def add(a, b): return a + b"),
}

_LIST = {"type": "function", "fn_name": "f", "tests": [{"args": [1], "expected": [1, 2]}]}
_DICT = {"type": "function", "fn_name": "f", "tests": [{"args": [1], "expected": {"a": 1}}]}
_TEXT = {"type": "function", "fn_name": "f", "tests": [{"args": [1], "expected": "abc"}]}
_TRUE = {"type": "function", "fn_name": "f", "tests": [{"args": [1], "expected": True}]}
_RAISES = {
    "type": "asserts",
    "entry_point": "f",
    "asserts": [
        "try:\n    f(-1)\n    seen = False\nexcept BaseException:\n    seen = True\nassert seen",
        "assert f(1) == 1",
    ],
}

_LOWER = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n"
_MANY = {"type": "asserts", "entry_point": "f"}

# Attempts of a script between reading its input and printing the right answer. One that raises prints another answer.
ESCAPES: dict[str, str] = {
    # where the grader could be
    "memory of the parent": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "environment of the parent": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "descriptors of the parent": "os.listdir(f'/proc/{os.getppid()}/fd')",
    "descriptors beside its own": "[os.fstat(fd) for fd in range(6, 64)][0]; [os.fstat(fd) for fd in range(4, 5)]",
    "read the parent by a call": "call(310, os.getppid(), 0, 0, 0, 0, 0)",
    "trace the parent": "call(101, 16, os.getppid(), 0, 0)",
    "be traced": "call(101, 0, 0, 0, 0)",
    "take a descriptor of the parent": "call(438, call(434, os.getppid(), 0), 0, 0)",
    # files
    "write to /tmp": "open('/tmp/pwned', 'w')",
    "write beside the program": "open('pwned', 'w')",
    "write to shared memory": "open('/dev/shm/pwned', 'w')",
    "make a folder": "os.mkdir('/tmp/pwned')",
    "read the password file": "open('/etc/passwd').read()",
    "list the root": "os.listdir('/home')",
    "make a symbolic link": "os.symlink('/', 'pwned')",
    "make a hard link": "os.link('/etc/passwd', '/tmp/pwned')",
    "rename": "os.rename('/tmp', '/tmp2')",
    "change a mode": "os.chmod('/', 0o777)",
    "change times": "os.utime('/tmp')",
    "change the root": "os.chroot('/tmp')",
    "truncate": "os.truncate('/etc/hostname', 0)",
    "a named pipe": "os.mkfifo('pwned')",
    "a memory file": "os.memfd_create('x')",
    "write to its own input": "os.pwrite(0, b'x', 0)",
    "open by handle": "call(304, -100, 0, 0)",
    "temporary file": "__import__('tempfile').TemporaryFile().write(b'x')",
    # processes and signals
    "fork": "os.fork() or os._exit(0)",
    "vfork": "call(58)",
    "a process by clone": "call(56, 17, 0, 0, 0, 0)",
    "a process by clone3": "call(435, 0, 0)",
    "posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "__import__('subprocess').run(['true'])",
    "multiprocessing": "__import__('multiprocessing').get_context('fork').Process(target=print).start()",
    "execve": "call(59, 0, 0, 0)",
    "execveat": "call(322, -100, 0, 0, 0, 0)",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "signal the group": "os.kill(0, 0)",
    "signal everybody": "os.kill(-1, 0)",
    "signal the first process": "os.kill(1, 0)",
    "signal a thread of the parent": "call(234, os.getppid(), os.getppid(), 0)",
    "queue a signal": "call(129, os.getppid(), 0, 0)",
    "signal by descriptor": "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "own the signals of a pipe": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "choose the signal of a pipe": "fcntl.fcntl(os.pipe()[0], 10, 9)",
    "lease a file": "fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "lock a file": "fcntl.flock(0, fcntl.LOCK_EX)",
    "a larger pipe": "fcntl.fcntl(1, 1031, 1 << 20)",
    "the limits of the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "higher limits": "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    "outlive the parent": "call(157, 1, 0, 0, 0, 0)",
    "go first": "os.nice(-5)",
    "another session": "os.setsid()",
    "scheduling of the parent": "os.sched_setaffinity(os.getppid(), [0])",
    # the kernel
    "a TCP socket": "socket.socket()",
    "a UDP socket": "socket.socket(type=socket.SOCK_DGRAM)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a datagram pair": "socket.socketpair(type=socket.SOCK_DGRAM)",
    "a netlink socket": "socket.socket(16, 3, 0)",
    "a packet socket": "socket.socket(17, 3, 0)",
    "a crypto socket": "socket.socket(38, 5, 0)",
    "a vsock socket": "socket.socket(40, 1, 0)",
    "send to an address": "socket.socketpair()[0].sendto(b'x', '/tmp/socket')",
    "send descriptors": "socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
    "a name to an address": "socket.getaddrinfo('localhost', 80)",
    "a user namespace": "call(272, 0x10000000)",
    "join a namespace": "call(308, 0, 0)",
    "mount": "call(165, 0, 0, 0, 0, 0)",
    "io_uring": "call(425, 1, 0)",
    "userfaultfd": "call(323, 0)",
    "bpf": "call(321, 0, 0, 0)",
    "performance events": "call(298, 0, 0, -1, -1, 0)",
    "keys": "call(250, 0, -3, 0)",
    "add a key": "call(248, 0, 0, 0, 0, 0)",
    "another filter": "call(317, 1, 0, 0)",
    "personality": "call(135, 0x0040000)",
    "the x32 way": "call(0x40000000 + 39)",
    "shared memory of System V": "call(29, 0, 4096, 0o1600)",
    "a message queue": "call(68, 0, 0o1600)",
    "a timer": "call(222, 0, 0, 0)",
    "lock memory": "call(149, 0, 4096)",
    "inotify": "call(294, 0)",
    "the host's name": "socket.sethostname('x')",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "vmsplice": "call(278, 1, 0, 0, 0)",
    # the harness
    "a result in a frame": "next(f for f in frames() for v in {**f.f_locals, **f.f_globals}.values() if '3\\n' in str(v))",
    "a result in any object": "next(o for o in gc.get_objects() if type(o) is dict and ('stdout' in o or 'expected' in o))",
    "the job's file": "[os.read(fd, 100) for fd in (3, 4, 5)]",
    "modules of the grader": "import rewards.programs.grader",
    "the grader's arguments": "sys.argv[1]",
    "the grader's folder": "next(p for p in sys.path if os.path.exists(p + '/rewards'))",
    "packages beside the standard library": "import numpy",
}
ESCAPE = """
import ctypes, fcntl, gc, os, resource, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0 and ctypes.get_errno() in (1, 13, 38):  # EPERM, EACCES, ENOSYS: refused; another error is an answer
        raise PermissionError
    return result
def frames(frame=None):
    frame = frame or sys._getframe()
    while frame := frame.f_back:
        yield frame
a, b = map(int, input().split())
try:
    {attempt}
except BaseException as error:
    print("held", error)
else:
    print(a + b)
"""

SCRIPTS: dict[str, str] = {
    "nothing": "pass",
    "exit before": "raise SystemExit",
    "exit with the right output": "print(sum(map(int, input().split()))); raise SystemExit(3)",
    "the status of a failed start": "import os; print(3, flush=True); os._exit(111)",
    "right output and a crash": "import ctypes; print(sum(map(int, input().split())), flush=True); ctypes.string_at(0)",
    "right output and a signal": "import os; print(sum(map(int, input().split())), flush=True); os.kill(os.getpid(), 40)",
    "right output and an abort": "import os; print(sum(map(int, input().split())), flush=True); os.abort()",
    "right output from a program that fails": "print(sum(map(int, input().split()))); 1 / 0",
    "an object as exit status": "class E: __str__ = lambda self: 1 / 0\nprint(sum(map(int, input().split())))\nraise SystemExit(E())",
    "a hostile exception": "class E(BaseException):\n    def __str__(self): raise self\nraise E",
    "a hostile exception class": "class M(type):\n    @property\n    def __mro__(self): raise E\nclass E(Exception, metaclass=M): pass\nraise E",
    "only the first test": "print(3)",
    "one line of two": "print(3); print(6)",
    "all outputs in one": "print('3\\n6')",
    "a verdict on every descriptor": "import os\nfor fd in range(1, 10):\n    try: os.write(fd, b'{\"status\": 0, \"passed\": true}\\n3\\n')\n    except OSError: pass",
    "no end": "while True: pass",
    "no end in a regular expression": "import re; re.match(r'(a+)+$', 'a' * 100 + 'b')",
    "no end while it compiles": "a = " + "(" * 90 + "1" + ")" * 90 + "\n" + "[0][" * 3000 + "0" + "]" * 3000,
    "no end in text": "import sys; sys.set_int_max_str_digits(0); str(10 ** 10_000_000)",
    "asleep": "import time; time.sleep(100)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "deaf": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "waits for itself": "import os; r, w = os.pipe(); os.read(r, 1)",
    "a thread that stays": "import threading, time; threading.Thread(target=time.sleep, args=(100,)).start(); print(0)",
    "a daemon that prints at the end": "import threading, time\ndef p():\n    while True: print(3, flush=True)\nthreading.Thread(target=p, daemon=True).start(); time.sleep(0.1)",
    "exit functions without end": "import atexit\ndef f(): atexit.register(f)\nf()\nprint(0)",
    "an object that does not die": "class D:\n    def __del__(self):\n        while True: pass\nd = D()",
    "an object that prints when it dies": "class D:\n    def __del__(self): print(3)\nd = D()\nprint(0)",
    "a flood": "while True: print('x' * 10000)",
    "right output and blanks without end": "print(sum(map(int, input().split())))\nwhile True: print(' ' * 10000)",
    "a flood of errors": "import sys\nwhile True: print('x' * 10000, file=sys.stderr)",
    "a flood of results": "import os\nwhile True: os.write(3, b'x' * 10000)",
    "closed descriptors": "import os; os.closerange(0, 64)",
    "exchanged descriptors": "import os; os.dup2(1, 3); os.dup2(2, 1); print(3)",
    "broken output": "import sys; sys.stdout = None; sys.stderr = 3; 1 / 0",
    "output that breaks": "import sys\nclass O:\n    def write(self, text): raise BaseException\n    flush = write\nsys.stdout = sys.stderr = O()\nprint(3)",
    "bytes that are no text": "import sys; sys.stdout.buffer.write(b'3\\n\\xff')",
    "half of a character": "print('\\ud800')",
    "null characters": "print('3\\0')",
    "too much memory": "x = bytearray(1 << 40)",
    "too much memory in pieces": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "too much mapped memory": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24))",
    "too much memory in threads": "import threading\nx = []\ndef f():\n    while True: x.append(bytearray(1 << 20))\nfor _ in range(8): threading.Thread(target=f).start()",
    "too many threads": "import threading, time\nthreading.stack_size(32768)\nwhile True: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
    "too many threads without Python": "import ctypes\nc = ctypes.CDLL(None)\na = (ctypes.c_char * 64)()\nc.pthread_attr_init(a); c.pthread_attr_setstacksize(a, ctypes.c_size_t(16384))\nt = ctypes.c_ulong(); n = 0\nwhile n < 1500 and not c.pthread_create(ctypes.byref(t), a, c.pause, None): n += 1\nprint(sum(map(int, input().split())) if n > 1000 else 0, flush=True); __import__('os')._exit(0)",
    "too many files": "import os\nx = []\ntry:\n    while True: x += os.pipe()\nexcept OSError: print(sum(map(int, input().split())) if len(x) > 64 else 0)",
    "too many processes": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "deep recursion": "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): return f() + 1\nf()",
    "a null byte": "print(3)\0",
    "an encoding that does not exist": "# -*- coding: nonsense -*-\nprint(0)",
    "half a character in the source": "print('\ud800')",
    "deep source": "(" * 100_000,
    "deep source of signs": "x = " + "-" * 150_000 + "1",
    "a long line": "x = " + "1+" * 90_000 + "1",
    "too long": "#" * 300_000,
    "blocks too deep": "\n".join(" " * i + "if 1:" for i in range(150)),
    "32-bit calls": "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\nf = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nf(); print(sum(map(int, input().split())))",
    "an alarm": "import signal; signal.alarm(1); signal.pause()",
    "endless input": "while True: __import__('os').read(0, 1) or __import__('os').lseek(0, 0, 0)",
    "everything replaced": "import sys, os, json, builtins\nos.write = os._exit = json.dumps = builtins.open = builtins.print = lambda *a, **k: 3\nsys.modules.clear()",
    "its own time lowered": f"{_LOWER}while True: pass",
    "its own time lowered, and right output": f"print(sum(map(int, input().split())), flush=True)\n{_LOWER}while True: pass",
    "its own time lowered, and deaf": f"import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{_LOWER}while True: pass",
    "its own time lowered by a thread": f"import threading\ndef f():\n    {_LOWER}t = threading.Thread(target=f); t.start(); t.join()\nwhile True: pass",
    "its own time lowered by a call": "import ctypes, struct, os\nctypes.CDLL(None).prlimit(os.getpid(), 0, struct.pack('QQ', 0, 0), None)\nwhile True: pass",
    "its own time lowered at its end": f"import atexit\ndef f():\n    {_LOWER}    while True: pass\natexit.register(f)\nprint(sum(map(int, input().split())))",
    "all its limits lowered": "import resource\nfor kind in range(16):\n    try: resource.setrlimit(kind, (0, 0))\n    except (OSError, ValueError): pass\nwhile True: pass",
    "watched by itself": "import sys\ndef t(frame, event, argument):\n    if 'status' in frame.f_locals: print(3)\n    return t\nsys.settrace(t); sys.setprofile(t)\nf = sys._getframe()\nwhile f: f.f_trace = t; f = f.f_back",
}  # fmt: skip

FUNCTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "not defined": (FUNCTION, "def sub(a, b): return a - b"),
    "not a function": (FUNCTION, "add = 3"),
    "its arguments": (FUNCTION, "def add(*a): return a"),
    "the first test only": (FUNCTION, "def add(a, b): return 3"),
    "exits": (FUNCTION, "def add(a, b): raise SystemExit"),
    "exits with success": (FUNCTION, "import os\ndef add(a, b): os._exit(0)"),
    "exits while it is loaded": (FUNCTION, "import os\nos._exit(0)"),
    "exits with the status of a failed start": (FUNCTION, "import os\nos._exit(111)"),
    "right, then fails": (FUNCTION, "import os\ndef add(a, b):\n    if a == 10: os._exit(1)\n    return a + b"),
    "right results and a failed end": (FUNCTION, "import os\nos.write(3, b'{\"value\": 3}\\n{\"value\": 6}\\n'); os._exit(1)"),
    "interrupts": (FUNCTION, "def add(a, b): raise KeyboardInterrupt"),
    "ends a generator": (FUNCTION, "def add(a, b): raise GeneratorExit"),
    "forged text": (FUNCTION, "import os; os.write(3, b'\"error\"\\n')\ndef add(a, b): return a + b"),
    "forged list": (FUNCTION, "import os; os.write(3, b'[\"error\"]\\n')\ndef add(a, b): return a + b"),
    "forged number": (FUNCTION, "import os; os.write(3, b'3\\n6\\n')\ndef add(a, b): return a + b"),
    "forged null": (FUNCTION, "import os; os.write(3, b'null\\n')\ndef add(a, b): return a + b"),
    "forged end": (FUNCTION, "import os; os.write(3, b'+{\"value\": 3}\\n')\ndef add(a, b): return a + b"),
    "forged depth": (FUNCTION, "import os; os.write(3, b'[' * 100_000 + b'\\n')\ndef add(a, b): return a + b"),
    "forged digits": (FUNCTION, "import os; os.write(3, b'{\"value\": ' + b'9' * 100_000 + b'}\\n')\ndef add(a, b): return a + b"),
    "forged nothing": (FUNCTION, "import os; os.write(3, b'\\n' * 500_000)\ndef add(a, b): return a + b"),
    "forged bytes": (FUNCTION, "import os; os.write(3, b'\\xff\\xfe\\0\\n')\ndef add(a, b): return a + b"),
    "forged error": (FUNCTION, "import os; os.write(3, b'{\"error\": \"\\\\ud800\\\\n\\\\u001b[2J\", \"value\": 3}\\n')\ndef add(a, b): return a + b"),
    "a float that is too large": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": \"float\", \"value\": 1' + b'0' * 400 + b'}}\\n')\ndef add(a, b): return 3"),
    "a complex number in half": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": \"complex\", \"value\": []}}\\n')\ndef add(a, b): return 3"),
    "a type that is a list": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": [], \"value\": []}}\\n')\ndef add(a, b): return 3"),
    "a type without a value": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": \"set\"}}\\n')\ndef add(a, b): return 3"),
    "a set of lists": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": \"set\", \"value\": [[]]}}\\n')\ndef add(a, b): return 3"),
    "keys of one hash": (_DICT, "import os\nk = ','.join('[%d,1]' % ((2**61 - 1) * i) for i in range(1, 35000))\nos.write(3, ('{\"value\":{\"type\":\"dict\",\"value\":[' + k + ']}}\\n').encode())\ndef f(x): return {}"),
    "a set of one hash": (_DICT, "import os\nk = ','.join('%d' % ((2**61 - 1) * i) for i in range(1, 35000))\nos.write(3, ('{\"value\":{\"type\":\"set\",\"value\":[' + k + ']}}\\n').encode())\ndef f(x): return {}"),
    "a name for what is kept": (FUNCTION, "import os; os.write(3, b'{\"value\": {\"type\": \"kept\", \"value\": 0}}\\n')\ndef add(a, b): return 3"),
    "always equal": (FUNCTION, "class E:\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef add(a, b): return E()"),
    "always equal, of another class": (FUNCTION, "class E:\n    __class__ = int\n    __eq__ = lambda self, other: True\ndef add(a, b): return E()"),
    "an integer that is equal": (FUNCTION, "class I(int):\n    __eq__ = lambda self, other: True\n    __index__ = __int__ = lambda self: 3\ndef add(a, b): return I(0)"),
    "a float that is equal": (FUNCTION, "class F(float):\n    __eq__ = lambda self, other: True\n    __float__ = lambda self: 3.0\ndef add(a, b): return F(0)"),
    "a text that is equal": (_TEXT, "class S(str):\n    __eq__ = lambda self, other: True\n    __str__ = __repr__ = lambda self: 'abc'\n    __hash__ = str.__hash__\ndef f(x): return S('')"),
    "a list that is equal": (_LIST, "class L(list):\n    __eq__ = lambda self, other: True\n    __iter__ = lambda self: iter([1, 2])\n    __len__ = lambda self: 2\n    __getitem__ = lambda self, i: [1, 2][i]\ndef f(x): return L()"),
    "a tuple that is equal": (_LIST, "class T(tuple):\n    __eq__ = lambda self, other: True\n    __iter__ = lambda self: iter([1, 2])\ndef f(x): return T()"),
    "a dict that is equal": (_DICT, "class D(dict):\n    __eq__ = lambda self, other: True\n    items = lambda self: [('a', 1)]\n    keys = lambda self: ['a']\ndef f(x): return D()"),
    "a key that is equal": (_DICT, "class K(str):\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: hash('a')\ndef f(x): return {K('b'): 1}"),
    "one for true": (_TRUE, "def f(x): return 1"),
    "true for one": ({**FUNCTION, "tests": [{"args": [0, 1], "expected": 1}]}, "def add(a, b): return True"),
    "text for a number": (FUNCTION, "def add(a, b): return str(a + b)"),
    "bytes for text": (_TEXT, "def f(x): return b'abc'"),
    "a set for a list": (_LIST, "def f(x): return {1, 2}"),
    "a generator for a list": (_LIST, "def f(x): yield 1; yield 2"),
    "a list that goes on": (_LIST, "def f(x): return [1, 2, 3]"),
    "a list that ends": (_LIST, "def f(x): return [1]"),
    "nested in itself": (_LIST, "def f(x):\n    l = []\n    l += [l, l]\n    return l"),
    "very deep": (_LIST, "def f(x):\n    l = []\n    for _ in range(100_000): l = [l]\n    return l"),
    "not a number": (FUNCTION, "def add(a, b): return float('nan')"),
    "infinity": ({**FUNCTION, "float_tol": 0.5}, "def add(a, b): return float('inf')"),
    "a huge integer": (FUNCTION, "def add(a, b): return 10 ** 100_000"),
    "a huge integer and a tolerance": ({**FUNCTION, "float_tol": 0.5}, "def add(a, b): return 10 ** 4000"),
    "a huger integer": (FUNCTION, "def add(a, b): return 1 << 10_000_000"),
    "a huge key": (_DICT, "def f(x): return {10 ** 5000: 1}"),
    "a key that is a tuple": (_DICT, "def f(x): return {('a',): 1}"),
    "the same key twice": (_DICT, "def f(x): return {'a': 1, 1: 1}"),
    "a long text": (_TEXT, "def f(x): return 'abc' * 1_000_000"),
    "a long list": (_LIST, "def f(x): return [1, 2] * 1_000_000"),
    "a class": (FUNCTION, "class add:\n    def __init__(self, a, b): pass"),
    "a hostile attribute": (FUNCTION, "class A:\n    def __getattr__(self, name): raise BaseException\n    def tolist(self): return self\ndef add(a, b): return A()"),
    "a method of a hostile class": (FUNCTION, "class M(type):\n    def __call__(self): raise KeyboardInterrupt\nclass Solution(metaclass=M):\n    def add(self, a, b): return a + b"),
    "the frame of the caller": (FUNCTION, "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f := f.f_back:\n        for v in list(f.f_locals.values()):\n            if isinstance(v, dict) and 'tests' in v: return v['tests'][0]['expected']"),
    "objects of the harness": (FUNCTION, "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and o.get('args') == [a, b]: return o['expected']"),
    "the library of the harness": (FUNCTION, "import json, builtins\njson.dumps = lambda *a, **k: '{\"value\": 3}'\nbuiltins.isinstance = lambda *a: True\ndef add(a, b): return 'x'"),
    "the harness itself": (FUNCTION, "import sys\nfor n, m in list(sys.modules.items()):\n    if n.startswith('rewards.'):\n        for k, v in list(vars(m).items()):\n            if callable(v): setattr(m, k, lambda *a, **k: {'value': 3})\ndef add(a, b): return 'x'"),
    "arguments that are kept": (FUNCTION, "seen = []\ndef add(a, b):\n    seen.append((a, b))\n    return seen"),
    "prints the result": (FUNCTION, "def add(a, b): print(a + b)"),
    "no end": (FUNCTION, "def add(a, b):\n    while True: pass"),
    "its own time lowered": (FUNCTION, f"def add(a, b):\n    {_LOWER}    while True: pass"),
    "its own time lowered, and a right result": (FUNCTION, f"import os\nos.write(3, b'{{\"value\": 3}}\\n{{\"value\": 6}}\\n')\n{_LOWER}while True: pass"),
    "near infinity": ({**FUNCTION, "float_tol": 0.5, "tests": [{"args": [1, 2], "expected": [0.0, float("-inf")]}]}, "def add(a, b): return [0.0, 7]"),
    "too much memory": (FUNCTION, "def add(a, b): return [0] * (1 << 40)"),
}  # fmt: skip

TESTED: dict[str, tuple[dict[str, Any], str]] = {
    "not defined": (ASSERTS, "x = 3"),
    "exits while it is loaded": (ASSERTS, "import os; os._exit(0)"),
    "exits when it is called": (ASSERTS, "import os\ndef add(a, b): os._exit(0)"),
    "exits for tests that expect an error": (_RAISES, "import os\ndef f(x):\n    if x < 0: os._exit(0)\n    return x"),
    "exits politely": (ASSERTS, "def add(a, b): raise SystemExit(0)"),
    "always equal": (ASSERTS, "class E:\n    __eq__ = lambda self, other: True\ndef add(a, b): return E()"),
    "always equal in a list": (
        {**ASSERTS, "asserts": ["assert add(1, 2) == [3]", "assert add(1, 2) in ([3], [4])", "assert [3] == add(1, 2)"]},
        "class E:\n    __eq__ = lambda self, other: True\n    __len__ = lambda self: 1\ndef add(a, b): return [E()]",
    ),
    "a list that is equal": (
        {**ASSERTS, "asserts": ["assert add(1, 2) == [3]"]},
        "class L(list):\n    __eq__ = lambda self, other: True\ndef add(a, b): return L()",
    ),
    "a number that is near everything": (
        {**ASSERTS, "asserts": ["assert abs(add(1, 2) - 3) < 1e-6"]},
        "class N:\n    __sub__ = __rsub__ = __abs__ = lambda self, *other: self\n    __lt__ = lambda self, other: True\ndef add(a, b): return N()",
    ),
    "replies before it is asked": (ASSERTS, "import os; os.write(5, b'{\"value\": 4}\\n' * 10)\ndef add(a, b): return a + b"),
    "replies that are no value": (ASSERTS, "import os; os.write(5, b'[\"value\"]\\n')\ndef add(a, b): return a + b"),
    "a reply that is kept by nobody": (ASSERTS, "import os; os.write(5, b'{\"value\": {\"type\": \"kept\", \"value\": {}}}\\n')\ndef add(a, b): return a + b"),
    "an exception that is none": (ASSERTS, "import os; os.write(5, b'{\"type\": \"print\", \"args\": [1]}\\n')\ndef add(a, b): return a + b"),
    "an exception of another kind": (ASSERTS, "import os; os.write(5, b'{\"type\": \"TestsAborted\", \"args\": []}\\n')\ndef add(a, b): return a + b"),
    "an exception that cannot be made": (ASSERTS, "import os; os.write(5, b'{\"type\": \"UnicodeDecodeError\", \"args\": [1]}\\n')\ndef add(a, b): return a + b"),
    "reads what is asked": (ASSERTS, "import os\nos.read(5, 1000)\ndef add(a, b): return a + b"),
    "a flood of replies": (ASSERTS, "import os\nwhile True: os.write(5, b'x' * 10000)"),
    "a reply without end": (ASSERTS, "def add(a, b):\n    import os\n    while True: os.write(5, b'1' * 10000)"),
    "closes the connection": (ASSERTS, "import os; os.close(5)\ndef add(a, b): return a + b"),
    "half of the connection": (ASSERTS, "import socket\ns = socket.socket(fileno=5); s.shutdown(socket.SHUT_WR)\ndef add(a, b): return a + b"),
    "keys of one hash": (ASSERTS, "import os\nk = ','.join('%d' % ((2**61 - 1) * i) for i in range(1, 35000))\nos.write(5, ('{\"value\":{\"type\":\"set\",\"value\":[' + k + ']}}\\n').encode())\ndef add(a, b): return 3"),
    "no end": (ASSERTS, "def add(a, b):\n    while True: pass"),
    "asleep": (ASSERTS, "import time\ndef add(a, b): time.sleep(100)"),
    "no end for the tests": (
        {**ASSERTS, "asserts": ["assert sum(add(1, 2)) == 3"]},
        "import itertools\ndef add(a, b): return itertools.count()",
    ),
    "says that it passed": (ASSERTS, "import os; os.write(3, b'{\"num_calls\": 2}')\ndef add(a, b): return 4"),
    "the frames of its tests": (ASSERTS, "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f := f.f_back:\n        for v in list(f.f_locals.values()):\n            if 'as' + 'sert' in str(v): return 3 if a == 1 else 6"),
    "changes what it is given": (
        {"type": "asserts", "entry_point": "f", "asserts": ["x = [3, 1]\nassert f(x) == sorted(x)"]},
        "def f(x):\n    x.clear()\n    return []",
    ),
    "knows one test": (ASSERTS, "def add(a, b): return 3"),
    "its own time lowered as it is loaded": (ASSERTS, f"{_LOWER}while True: pass"),
    "its own time lowered as it is called": (ASSERTS, f"def add(a, b):\n    {_LOWER}    while True: pass"),
    "its own time lowered, and away": (ASSERTS, f"import os; os.close(5)\n{_LOWER}while True: pass"),
    **{
        f"ends {what}": ({**_MANY, "asserts": [test]}, "def f(x): raise StopIteration")
        for what, test in {
            "all": "assert all(map(lambda c: f(c[0]) == c[1], [(1, 2), (2, 4)]))",
            "a loop": "for got, want in zip(map(f, [1, 2]), [2, 4]): assert got == want",
            "a sum": "assert sum(map(f, [1, 2])) == 0",
            "a filter": "assert not list(filter(lambda x: f(x) != x, [1, 2]))",
            "a dict": "for k, v in dict(zip('ab', map(f, [1, 2]))).items(): assert k == v",
            "a search": "assert next(map(f, [1]), 5) == 5",
        }.items()
    },
    "ends all by an attribute": (
        {**_MANY, "asserts": ["assert all(map(lambda x: f(x).value == 3, [1, 2]))"]},
        "class A:\n    def __getattr__(self, name): raise StopIteration\ndef f(x): return A()",
    ),
    "its own comparison": ({**_MANY, "asserts": ["assert isclose(f(2), 4.0)"]}, "def f(x): return 0\ndef isclose(*a, **k): return True"),
    "its own counter": ({**_MANY, "asserts": ["assert f('ab') == Counter('ab')"]}, "def f(x): return 0\ndef Counter(x): return 0"),
    "its own helper of the prefix": (
        {**_MANY, "asserts": ["assert f(g('a')) == 'a'"], "prefix": "def g(s):\n    return s + 'x'\n"},
        "def f(s): return s\ndef g(s): return s",
    ),
    "its own helper of a prefix that goes on": (
        {**_MANY, "asserts": ["assert f(g('a')) == 'a'"], "prefix": "def g(s):\n    return s + 'x'\ndef f(s):\n"},
        "def f(s): return s\ndef g(s): return s",
    ),
    "long texts for tests that print": ({**_MANY, "asserts": ["for i in range(20): print(f(i))\nassert f(1) == 'a'"]}, "def f(x): return 'x' * 900_000"),
    "long texts for tests that write": ({**_MANY, "asserts": ["import os\nfor i in range(9): os.write(1, f(i).encode())\nassert f(1) == 'a'"]}, "def f(x): return 'x' * 900_000"),
    "ends tests that evaluate": ({**_MANY, "asserts": ["assert eval(f(1)) == 3"]}, "def f(x): return \"__import__('os')._exit(0)\""),
    "breaks tests that evaluate": ({**_MANY, "asserts": ["assert eval(f(1)) == 3"]}, "def f(x): return \"__import__('os').abort()\""),
    "gives what cannot be handed back": ({**_MANY, "asserts": ["assert f(f(1).items()) == 3"]}, "def f(x): return {}"),
    "fails where its tests are set up": ({**_MANY, "setup": "first = f(0)", "asserts": ["assert f(1) == 1"]}, "def f(x): raise SystemExit"),
    "another class's exception": (
        {"type": "asserts", "entry_point": "f", "asserts": ["try:\n    f(-1)\n    assert False\nexcept ValueError: pass"]},
        "def f(x): raise KeyError",
    ),
}  # fmt: skip
