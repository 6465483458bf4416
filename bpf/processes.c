/* The set of traced processes follows fork (-f) and exit, so that a reused pid is not taken for
 * one. */

#ifdef FILTER_PIDS
#ifdef FOLLOW_CHILDREN
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = ctx->args[0], child = ctx->args[1], start_ns = 0;
	u32 parent_tgid = 0, tgid = 0, tid = 0;

	READ(parent_tgid, parent, O_task_struct__tgid);
	READ(tgid, child, O_task_struct__tgid);
	READ(tid, child, O_task_struct__pid);
	if (tgid != tid || !pid_is_traced(parent_tgid))
		return 0; /* a thread, or somebody else's child */
	READ(start_ns, child, O_task_struct__start_boottime);
	traced_pids.update(&tgid, &start_ns);
	return 0;
}
#endif

int on_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0], signal = 0;
	u32 tgid = 0, live = 1;

	READ(tgid, task, O_task_struct__tgid);
	if (!pid_is_traced(tgid))
		return 0;
	READ(signal, task, O_task_struct__signal);
	READ(live, signal, O_signal_struct__live);
	if (!live) /* the last thread; its files are closed after this */
		traced_pids.delete(&tgid);
	return 0;
}
#endif
