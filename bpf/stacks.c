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

#ifdef LOADED_BY_MMAP
#define PROT_EXEC 4 /* ABI */

/*
 * sys_enter_mmap: a program or library is mapped. It may come to stand where another one of
 * the same size was: what was learnt of the addresses there holds no more.
 */
int on_mmap(void *ctx)
{
	u64 mm = 0, program, now = bpf_ktime_get_ns();

	if (!(*(u64 *)(ctx + O_sys_enter_mmap__prot) & PROT_EXEC))
		return 0;
	if ((s32) * (u64 *)(ctx + O_sys_enter_mmap__fd) < 0)
		return 0;
	READ(mm, bpf_get_current_task(), O_task_struct__mm);
	program = program_of(mm);
	code_loaded.update(&program, &now);
	return 0;
}
#endif
#endif
