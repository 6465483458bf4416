/* The saved user registers; user_pt_regs is ABI, the rest is read by offset from BTF. */
#ifndef TCPTRACE_ASM_PTRACE_H
#define TCPTRACE_ASM_PTRACE_H
#include <linux/types.h>
struct user_pt_regs {
	u64 regs[31], sp, pc, pstate;
};
struct pt_regs {
	u64 regs[31], sp, pc, pstate;
	u64 orig_x0;
};
#endif
