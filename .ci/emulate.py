"""Runs a static Linux program on an emulated processor: Intel's Sapphire Rapids, as Bochs has it.

    emulate.py PROGRAM [ARGUMENT]...

Only the processor is emulated. What the program asks the kernel for is answered here: memory, output, and threads, which
run one at a time until they wait. There are no files, and no calls but those in `System.CALLS`.
"""

import collections
import ctypes
import errno
import mmap
import os
import struct
import sys
import time
import traceback

import bochscpu
import bochscpu.cpu
import bochscpu.memory

# Its place in Bochs's list of models.
SAPPHIRE_RAPIDS = 30

PAGE, GIBIBYTE = 1 << 12, 1 << 30
# Addresses are the same for the program, for the processor and in `System.ram`, where pages that nobody touches take no
# memory. What is mapped stands above the addresses that processors keep for devices.
TABLES, GATE, PROGRAM = 1 * PAGE, 4 * PAGE, 1 << 22
STACK = BREAK = 1 * GIBIBYTE
MAPPINGS, END = 4 * GIBIBYTE, 64 * GIBIBYTE

REGISTERS = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()


class Thread:
    """A thread, and its registers while it does not run: those that a call of the kernel keeps."""

    def __init__(self, number, registers, tls):
        self.number, self.registers, self.tls = number, registers, tls
        self.waits_at, self.has_limit, self.clear_at_exit = None, False, 0


class System:
    """The memory, the processor, and as much of a kernel as the program notices."""

    def __init__(self):
        no_reserve = 0x4000
        self.ram = mmap.mmap(-1, END, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.session = session()
        self.session.missing_page_handler = lambda at: bochscpu.memory.page_insert(at, start + at)
        self.cpu = self.session.cpu
        self.breaks, self.mappings = BREAK, MAPPINGS
        self.count, self.thread = 1, Thread(1, {}, 0)
        self.threads, self.ready = [self.thread], collections.deque()
        self.status, self.unanswered = None, set()

    def run(self, path, arguments):
        """Runs a program to its end, and gives its status."""
        entry, header = self.load(path)
        self.cpu.state = self.first_state(entry, self.first_stack(entry, header, [path, *arguments]))
        hook = bochscpu.Hook()
        # There are no far branches but calls of the kernel.
        hook.far_branch = lambda *_: self.guarded(self.call)
        hook.exception = lambda _, cpu, kind, code: self.guarded(self.fault, kind)
        self.session.run([hook])
        if self.status is None:
            print("the emulator stopped before the program did", file=sys.stderr)
            return 101
        return self.status

    def guarded(self, function, *arguments):
        """Calls a function; nothing must be raised into the emulator."""
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc()
            self.stop(101)

    def stop(self, status):
        self.status = status
        self.session.stop()
        if status:
            print(f"calls without an answer: {sorted(self.unanswered)}", file=sys.stderr)

    def fault(self, kind):
        kind = bochscpu.cpu.ExceptionType(kind)
        raise RuntimeError(f"{kind} at {self.cpu.rip:#x}, address {self.cpu.cr2:#x}")

    # What a program finds when it starts.

    def load(self, path):
        """Copies a program into memory; gives where it starts, and its table of parts."""
        with open(path, "rb") as file:
            data = file.read()
        kind, _, _, entry, table = struct.unpack_from("<HHIQQ", data, 16)
        size, count = struct.unpack_from("<HH", data, 54)
        # A program that may stand anywhere moves its pointers itself.
        base = PROGRAM if kind == 3 else 0
        for part in range(count):
            kind, _, at, address, _, length = struct.unpack_from("<IIQQQQ", data, table + part * size)
            if kind == 3:
                raise ValueError(f"`{path}` is not a static program")
            if kind == 1:
                self.store(base + address, data[at : at + length])
                if at <= table < at + length:
                    header = base + address + table - at
        return base + entry, (header, size, count)

    def first_stack(self, entry, header, arguments):
        """Writes the arguments, the environment and what a kernel tells besides; gives where the stack ends."""
        top = STACK

        def push(data):
            nonlocal top
            top -= len(data)
            self.store(top, data)
            return top

        names = [push(name.encode() + b"\0") for name in arguments]
        passed = ((name, value) for name, value in os.environ.items() if name.startswith(("REFSEG_", "RUST_")))
        settings = [push(f"{name}={value}\0".encode()) for name, value in passed]
        at, size, count = header
        random = push(bytes(range(16)))
        told = {3: at, 4: size, 5: count, 6: PAGE, 9: entry, 23: 0, 25: random, 31: names[0], 0: 0}
        told = [word for pair in told.items() for word in pair]
        words = [len(names), *names, 0, *settings, 0, *told]
        top = (top - 8 * len(words)) & -64
        self.store(top, struct.pack(f"<{len(words)}Q", *words))
        return top

    def first_state(self, entry, stack):
        """64-bit mode, each address mapped to itself, and AVX-512 switched on, as a kernel does it."""
        pages = [at | 0x83 for at in range(0, END, GIBIBYTE)]
        self.store(TABLES, struct.pack("<Q", (TABLES + PAGE) | 3))
        self.store(TABLES + PAGE, struct.pack(f"<{len(pages)}Q", *pages))
        # A call of the kernel comes to `jmp rcx`, which goes back, and is answered on the way.
        self.store(GATE, b"\xff\xe1")
        state = bochscpu.State()
        bochscpu.cpu.set_long_mode(state)
        state.cr0 |= 1 << 1
        state.cr3 = TABLES
        state.cr4 |= 1 << 9 | 1 << 10 | 1 << 18
        state.xcr0 = 0xE7
        state.star, state.lstar = 8 << 32, GATE
        state.cs = segment(8, 0xA09B)
        for name in ("ds", "es", "ss", "fs", "gs"):
            setattr(state, name, segment(16, 0xC093))
        state.rip, state.rsp, state.rflags = entry, stack, 2
        state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        return state

    # Memory and threads.

    def store(self, at, data):
        self.ram[at : at + len(data)] = data

    def registers(self):
        return {name: getattr(self.cpu, name) for name in REGISTERS}

    def switch(self):
        """Lets the next thread run."""
        if self.thread:
            self.thread.registers = self.registers()
        if not self.ready:
            # Time passes only when all threads wait.
            limited = [thread for thread in self.threads if thread.has_limit]
            if not limited:
                raise RuntimeError("all threads wait for each other")
            self.wake(limited[0], -errno.ETIMEDOUT)
        self.thread = self.ready.popleft()
        for name, value in self.thread.registers.items():
            setattr(self.cpu, name, value)
        self.cpu.fs = segment(16, 0xC093, self.thread.tls)

    def wake(self, thread, result):
        thread.waits_at, thread.has_limit = None, False
        thread.registers["rax"] = result % 2**64
        self.ready.append(thread)

    # Calls of the kernel. One that gives nothing has let another thread run.

    def call(self):
        cpu = self.cpu
        method = self.CALLS.get(cpu.rax)
        if method is None:
            self.unanswered.add(cpu.rax)
            result = -errno.ENOSYS
        else:
            arguments = (cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9)
            result = method(self, *arguments[: method.__code__.co_argcount - 1])
        if result is not None:
            cpu.rax = result % 2**64

    def nothing(self):
        return 0

    def no_file(self):
        return -errno.ENOENT

    def write(self, file, at, length):
        return os.write(file, self.ram[at : at + length])

    def mmap(self, at, length, protection, flags):
        # Memory without a file, wherever there is room.
        if flags & 0x30 != 0x20:
            return -errno.ENODEV
        at = self.mappings
        self.mappings += -(-length // PAGE) * PAGE
        return at

    def munmap(self, at, length):
        self.ram.madvise(mmap.MADV_DONTNEED, at, -(-length // PAGE) * PAGE)
        return 0

    def madvise(self, at, length, advice):
        return self.munmap(at, length) if advice == mmap.MADV_DONTNEED else 0

    def brk(self, at):
        self.breaks = at or self.breaks
        return self.breaks

    def arch_prctl(self, code, at):
        if code != 0x1002:
            return -errno.EINVAL
        self.thread.tls = at
        self.cpu.fs = segment(16, 0xC093, at)
        return 0

    def clone(self, flags, stack, parent, child, tls):
        self.count += 1
        thread = Thread(self.count, {**self.registers(), "rsp": stack, "rax": 0}, tls)
        if flags & 0x100000:
            self.store(parent, struct.pack("<I", self.count))
        if flags & 0x200000:
            thread.clear_at_exit = child
        self.threads.append(thread)
        self.ready.append(thread)
        return self.count

    def sched_yield(self):
        self.cpu.rax = 0
        self.ready.append(self.thread)
        self.switch()

    def exit(self):
        at = self.thread.clear_at_exit
        if at:
            self.store(at, bytes(4))
            self.futex(at, 1, 1, 0)
        self.threads.remove(self.thread)
        self.thread = None
        self.switch()

    def exit_group(self, status):
        self.stop(status % 256)

    def gettid(self):
        return self.thread.number

    def set_tid_address(self, at):
        self.thread.clear_at_exit = at
        return self.thread.number

    def futex(self, at, operation, value, limit):
        # Waiting and waking, each also with a mask, of which all bits are set.
        operation &= 0x7F
        if operation in (0, 9):
            if self.ram[at : at + 4] != struct.pack("<I", value % 2**32):
                return -errno.EAGAIN
            self.thread.waits_at, self.thread.has_limit = at, limit != 0
            return self.switch()
        if operation in (1, 10):
            waiting = [thread for thread in self.threads if thread.waits_at == at][:value]
            for thread in waiting:
                self.wake(thread, 0)
            return len(waiting)
        return -errno.ENOSYS

    def sched_getaffinity(self, thread, length, at):
        self.store(at, struct.pack("<Q", 1))
        return 8

    def clock_gettime(self, clock, at):
        self.store(at, struct.pack("<QQ", *divmod(time.clock_gettime_ns(clock), 10**9)))
        return 0

    def getrandom(self, at, length):
        self.store(at, bytes(i % 256 for i in range(length)))
        return length

    CALLS = {
        1: write,
        7: nothing,  # poll
        9: mmap,
        10: nothing,  # mprotect
        11: munmap,
        12: brk,
        13: nothing,  # rt_sigaction
        14: nothing,  # rt_sigprocmask
        24: sched_yield,
        28: madvise,
        56: clone,
        60: exit,
        131: nothing,  # sigaltstack
        158: arch_prctl,
        186: gettid,
        202: futex,
        204: sched_getaffinity,
        218: set_tid_address,
        228: clock_gettime,
        231: exit_group,
        257: no_file,  # openat
        273: nothing,  # set_robust_list
        318: getrandom,
    }


def segment(selector, attributes, base=0):
    whole = bochscpu.Segment()
    whole.present, whole.selector, whole.attr = True, selector, attributes
    whole.base, whole.limit = base, 0xFFFF_FFFF
    return whole


class Opcode(ctypes.Structure):
    """What Bochs knows of an instruction."""

    _fields_ = [
        ("with_memory", ctypes.c_void_p),
        ("with_registers", ctypes.c_void_p),
        ("operands", ctypes.c_ubyte * 4),
        ("flags", ctypes.c_ushort),
    ]


def session():
    """A processor of the model, which the package has no way to choose: this reaches into its Bochs, of version 0.4.0."""
    bochs = ctypes.CDLL(bochscpu._bochscpu.__file__)
    bochs.sim_get_param_enum.restype = ctypes.c_void_p
    model = ctypes.c_void_p(bochs.sim_get_param_enum(b"cpu.model"))
    bochs._ZN14bx_param_num_c9set_rangeEmm(model, ctypes.c_ulong(0), ctypes.c_ulong(SAPPHIRE_RAPIDS))
    bochs._ZN14bx_param_num_c3setEl(model, ctypes.c_long(SAPPHIRE_RAPIDS))

    # A short displacement counts vectors where `vdpbf16ps` reads one from memory (operand 0x04), but this Bochs has it
    # count 32 bits (0x44), and so reads from elsewhere.
    opcodes = (Opcode * 3598).in_dll(bochs, "BxOpcodesTable")
    function = bochs._ZN8BX_CPU_C25VDPBF16PS_MASK_VpsHdqWdqREP15bxInstruction_c
    address = ctypes.cast(function, ctypes.c_void_p).value
    next(opcode for opcode in opcodes if opcode.with_registers == address).operands[2] = 0x04
    return bochscpu.Session()


if __name__ == "__main__":
    sys.exit(System().run(sys.argv[1], sys.argv[2:]))
