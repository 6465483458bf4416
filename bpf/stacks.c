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
#endif
