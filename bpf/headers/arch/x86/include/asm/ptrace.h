/* The saved user registers; this layout is ABI (arch/x86/include/uapi/asm/ptrace.h). */
#ifndef TCPTRACE_ASM_PTRACE_H
#define TCPTRACE_ASM_PTRACE_H
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#endif
