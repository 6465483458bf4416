/*
 * SIGPIPE: signal:signal_generate, in the thread whose write failed and before the
 * write returns. What the signal will do is kept until then (bpf/io.c tells both).
 */

#ifdef DEEDS
#define SIGPIPE 13
#define SIG_DFL 0
#define SIG_IGN 1
#define SIGNAL_IGNORED 1 /* TRACE_SIGNAL_IGNORED, include/trace/events/signal.h */

static __always_inline u64 handler_of(u64 task)
{
	u64 table = 0, handler = 0;

	READ(table, task, O_task_struct__sighand);
	READ(handler, table, O_sighand_struct__action + (SIGPIPE - 1) * K_SIGACTION_BYTES);
	return handler;
}

static __always_inline u8 disposition_of(u64 task, u64 handler)
{
	u64 blocked = 0;

	READ(blocked, task, O_task_struct__blocked);
	if (handler == SIG_IGN)
		return PIPE_IGNORED;
	if (blocked & (1ULL << (SIGPIPE - 1)))
		return PIPE_BLOCKED;
	return handler == SIG_DFL ? PIPE_DEFAULT : PIPE_HANDLED;
}

/* sig, info, task, group, result */
int on_signal(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[2], id = bpf_get_current_pid_tgid();
	struct broken_pipe pipe = {};

	if ((u32)ctx->args[0] != SIGPIPE || task != bpf_get_current_task())
		return 0;
	if (!pid_is_traced(id >> 32))
		return 0;
	pipe.handler = handler_of(task);
	pipe.disposition = disposition_of(task, pipe.handler);
	broken_pipes.update(&id, &pipe);
	return 0;
}

/* sched:sched_process_exit: of traced processes, and of those that a broken pipe may have ended. */
int on_end(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0], signal = 0;
	u32 tgid = current_tgid(), live = 1, code = 0, *wrote;
	struct owner who = {};
	struct deed *d;

	READ(signal, task, O_task_struct__signal);
	READ(live, signal, O_signal_struct__live);
	if (live)
		return 0;
	wrote = wrote_in_vain.lookup(&tgid);
	if (TRACE_ALL_OWNERS ? !wrote : !pid_is_traced(tgid))
		return 0;
	d = deed_reserve(DEED_EXIT);
	if (!d)
		return 0;
	READ(code, signal, O_signal_struct__group_exit_code);
	if (!code)
		READ(code, task, O_task_struct__exit_code);
	identify(&who, current_leader(), HOW_UNKNOWN);
	d->pid = who.pid;
	d->tid = d->cpu_tid;
	d->uid = who.uid;
	d->start_ns = who.start_ns;
	d->result = code;
	__builtin_memcpy(d->comm, who.comm, sizeof(d->comm));
	deeds.ringbuf_submit(d, 0);
	if (wrote)
		wrote_in_vain.delete(&tgid);
	return 0;
}
#endif
