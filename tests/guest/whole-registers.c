/*
 * Preloaded, lets User-Mode Linux 6.1 run on processors with AMX.
 *
 * It gives its processes their registers by ptrace(2), PTRACE_SETREGSET of NT_X86_XSTATE, from a buffer that is large enough
 * for AVX-512 (FP_SIZE in arch/x86/um/asm/processor_64.h: 2696 bytes). The kernel below it takes the processor's whole XSAVE
 * area or nothing (xstateregs_set in arch/x86/kernel/fpu/regset.c). Where that is larger, as with AMX, it says EFAULT, and the
 * guest's init dies at once. So the rest is added here: components that a process has to ask the kernel for, as nobody in the
 * guest does, in their initial state. Elsewhere this changes nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Where the XSAVE area says which components are in use (Intel SDM 1, 13.4.2), in bytes, and those before AMX, as bits. */
#define IN_USE 512
#define BEFORE_AMX 0x3ff

typedef long ptrace_function(enum __ptrace_request, ...);

/* Not on the stack: those of a kernel are small. It makes these calls one by one. */
static char whole[1 << 16];

static long set_whole(ptrace_function *call, pid_t process, const struct iovec *part, size_t size)
{
	struct iovec all = { whole, size };
	uint64_t in_use;

	memset(whole, 0, size);
	memcpy(whole, part->iov_base, part->iov_len < size ? part->iov_len : size);
	memcpy(&in_use, whole + IN_USE, sizeof(in_use));
	in_use &= BEFORE_AMX;
	memcpy(whole + IN_USE, &in_use, sizeof(in_use));
	return call(PTRACE_SETREGSET, process, NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_function *call;
	static size_t size; /* of the whole, once a part was refused */
	va_list arguments;
	va_start(arguments, request);
	pid_t process = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (!call)
		call = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (uintptr_t)address != NT_X86_XSTATE)
		return call(request, process, address, data);
	if (!size) {
		struct iovec all = { whole, sizeof(whole) };
		long done = call(request, process, address, data);
		if (done == 0 || errno != EFAULT || call(PTRACE_GETREGSET, process, address, &all) != 0)
			return done;
		size = all.iov_len;
	}
	return set_whole(call, process, data, size);
}
