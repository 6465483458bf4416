/* Run by user space, as it reads the mappings of a process: are they still those of the stack? */

#ifdef STACK_USER
BPF_ARRAY(asked_space, struct space, 1);

/* pidfd, pid. Returns 1, and the answer in `asked_space`; 0: there is no such process. */
int tell_space(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = task_of_pidfd(ctx->args[0], ctx->args[1]);
	int only = 0;
	struct space *answer = asked_space.lookup(&only);

	if (!task || !answer)
		return 0;
	space_of(answer, task);
	return answer->space != 0;
}

#ifdef CODE_IS_FOLLOWED
#define PROT_EXEC 4 /* ABI */

static __always_inline void code_is_loaded(void)
{
	u32 tgid = current_tgid();
	u64 now = bpf_ktime_get_ns();

	code_loaded.update(&tgid, &now);
}

/*
 * sys_enter_mmap: a library is mapped. It may come to stand where another one of the same
 * size was: what was learnt of the addresses there holds no more.
 */
int on_mmap(void *ctx)
{
	if (!(*(u64 *)(ctx + O_sys_enter_mmap__prot) & PROT_EXEC))
		return 0;
	if ((s32) * (u64 *)(ctx + O_sys_enter_mmap__fd) >= 0)
		code_is_loaded();
	return 0;
}

/* sched:sched_process_exec: also a program that maps nothing itself, at the same addresses. */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	code_is_loaded();
	return 0;
}

/* sched:sched_process_fork: a child has its parent's code, until it loads other code itself. */
int on_child(struct bpf_raw_tracepoint_args *ctx)
{
	u32 parent = 0, child = 0;
	u64 *when;

	READ(parent, ctx->args[0], O_task_struct__tgid);
	READ(child, ctx->args[1], O_task_struct__tgid);
	when = parent == child ? NULL : code_loaded.lookup(&parent);
	if (when)
		code_loaded.update(&child, when);
	return 0;
}
#endif
#endif
