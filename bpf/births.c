/*
 * How the socket table learns owners that no transition shows: accept(), the
 * first I/O of a process that was handed a socket, adoption of older sockets;
 * and how it forgets them.
 */

/* Not on the stack, which is small; only system calls come here, one at a time on a CPU. */
BPF_PERCPU_ARRAY(found_owners, struct tracked, 1);

/* Current holds this socket, and nobody in the table did. */
static __always_inline void found_in_hand(u64 sk, s32 fd, u8 how, u64 birth_stack)
{
	int only = 0;
	struct tracked *fresh = found_owners.lookup(&only), *entry;
	struct state_record *r;
	struct child *child;
	struct head h;
	u32 state;

	if (!fresh || !head_read(&h, sk) || !is_tcp(sk) || !socket_is_wanted(sk, &h))
		return;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	identify_current(&fresh->owner, how);
	fresh->owner.fd = fd;
	fresh->cookie = number_of(HEAD(&h, u64, skc_cookie));
	fresh->birth_stack = birth_stack;
	child = find_child(sk);
	if (child)
		fresh->since_ns = child->since_ns;
	entry = track(sk, fresh);
	if (!entry || !comm_is_wanted(entry->owner.comm))
		return;
	if (!child && !all_is_attached()) /* the inventory, which is still to come, shows it */
		return;
	r = record_reserve(child ? held_back(child) : 1);
	if (!r) {
		forget_child(sk);
		return;
	}
	state = child && child->state ? child->state : HEAD(&h, u8, skc_state);
	fill_transition(r, sk, &h, state, state);
	r->facts |= FACT_TRACKED | FACT_VERIFIED;
	r->cookie = entry->cookie;
	/* Accepted and no child: a packet came, and another CPU has told it just now. */
	r->kind = child || how == HOW_ACCEPT ? KIND_ACCEPTED : KIND_EXISTING;
	if (r->kind == KIND_ACCEPTED)
		r->accepted_ns = r->ts_ns;
	if (child)
		fill_child(r, child, sk);
	fill_stacks(r, entry);
	fill_owner(r, &entry->owner);
	events.ringbuf_submit(r, 0);
	if (child)
		told_children.delete(&sk);
}

/* Run by user space for a child that has waited long: tell it as it stands. */
int tell_child(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct child *child = children.lookup(&sk);
	struct state_record *r;
	struct head h;

	if (!child || child->told || !head_read(&h, sk) || !socket_is_wanted(sk, &h))
		return 0;
	if (!TRACE_ALL_OWNERS && !child->listener_pid && !socket_of(sk))
		return 0;
	r = record_reserve(0); /* it can be told the next time */
	if (!r)
		return 0;
	fill_transition(r, sk, &h, HEAD(&h, u8, skc_state), HEAD(&h, u8, skc_state));
	r->kind = KIND_WAITING;
	r->facts |= FACT_CHILD;
	fill_child(r, child, sk);
	events.ringbuf_submit(r, 0);
	return 1;
}

#ifdef ACCEPT_BY_SYSCALL
/* By itself, as socket's first bytes and a walk do not fit on a BPF stack together. */
static __always_inline bool stack_is_wanted(u64 sk)
{
	struct process_name name = {};
	struct head h;

	READ(name.text, current_leader(), O_task_struct__comm);
	return head_read(&h, sk) && is_tcp(sk) && socket_is_wanted(sk, &h) &&
	       comm_is_wanted(name.text);
}

/* sys_exit_accept, sys_exit_accept4: the new descriptor leads to the socket. */
int on_accept_exit(void *ctx)
{
	u64 file, sk;
	s64 fd = 0;

	fd = *(s64 *)(ctx + O_sys_exit_accept__ret);
	if (fd < 0 || !(pid_is_traced(current_tgid()) || had_listener()))
		return 0;
	file = file_at(current_leader(), fd);
	if (!file)
		return 0;
	sk = sk_of_file(file);
	if (pid_is_traced(current_tgid()))
		found_in_hand(sk, fd, HOW_ACCEPT, stack_is_wanted(sk) ? user_stack() : 0);
	else
		forget_child(sk);
	return 0;
}
#endif

/* tcp:tcp_destroy_sock (4.15): the address may be used for another socket from here on. */
int on_destroy(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct tracked *entry = sockets.lookup(&sk);

	if (entry) { /* looking takes no lock, which a delete does */
#ifdef DEEDS
		ended.update(&sk, entry);
#endif
		sockets.delete(&sk);
	}
	if (had_listener() || inventory_is_running())
		forget_child(sk);
	return 0;
}

static __always_inline u64 task_of_pid(u64 pid, u32 tgid)
{
	u64 node = 0, task = 0;
	u32 found = 0;

	READ(node, pid, O_pid__tasks);
	if (!node)
		return 0;
	task = node - O_task_struct__pid_links;
	READ(found, task, O_task_struct__tgid);
	return found == tgid ? task : 0;
}

static __always_inline u64 task_of_pidfd(s32 pidfd, u32 tgid)
{
	u64 file = file_at(current_leader(), pidfd), pid = 0, inode = 0, task;

	if (!file)
		return 0;
	/* 6.9 (commit cb12fd8e0dab, "pidfd: add pidfs") moved it from the file to the inode. */
	READ(pid, file, O_file__private_data);
	task = pid ? task_of_pid(pid, tgid) : 0;
	if (task)
		return task;
	READ(inode, file, O_file__f_inode);
	READ(pid, inode, O_inode__i_private);
	return pid ? task_of_pid(pid, tgid) : 0;
}

/*
 * The accept queue of an adopted listener, some children at a time: user space
 * runs it until it returns 0. SETTING_QUEUE holds the next request.
 */
int adopt_children(struct bpf_raw_tracepoint_args *ctx)
{
	int which = SETTING_QUEUE;
	u64 *next = settings.lookup(&which), request;
	struct child waiting = {.told = 1,
				.listener_pid = ctx->args[0]}; /* told by the inventory */

	if (!next)
		return 0;
	request = *next;
	LOOP (u32 i = 0; i < QUEUE_ADOPTED && request; i++) {
		u64 sk = child_of(request);

		struct child *known = children.lookup(&sk);
		if (known) /* born in the window, when its listener was not known yet */
			known->listener_pid = waiting.listener_pid;
		else if (sk)
			told_children.insert(&sk, &waiting);
		READ(request, request, O_request_sock__dl_next);
	}
	*next = request;
	return request != 0;
}

static __always_inline void adopt_listener(u64 sk, struct head *h, bool is_new)
{
	int which = SETTING_QUEUE;
	u64 *next = settings.lookup(&which);

	if (is_new)
		listener_add(sk, h);
	if (next)
		*next = queue_end(sk, O_request_sock_queue__rskq_accept_head);
}

/*
 * Run by user space (BPF_PROG_TEST_RUN, 5.10) for a socket that is older than
 * the tracer: pidfd, pid, fd, inode of the file, HOW_x. Live knowledge wins over
 * what the scan of /proc said. Returns ADOPT_x.
 */
int adopt(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = ctx->args[1], how = ctx->args[4];
	s32 fd = ctx->args[2];
	u64 task = task_of_pidfd(ctx->args[0], tgid), file, sk;
	struct tracked fresh = {}, *entry;
	struct head h;
	bool wanted;

	if (!task)
		return ADOPT_NO_TASK;
	file = file_at(task, fd);
	if (!file || inode_of(file) != (u32)ctx->args[3])
		return ADOPT_NO_FILE;
	sk = sk_of_file(file);
	if (!head_read(&h, sk) || !is_tcp(sk))
		return ADOPT_NOT_WANTED;
	wanted = socket_is_wanted(sk, &h);
	if (!wanted && HEAD(&h, u8, skc_state) != TCP_LISTEN)
		return ADOPT_NOT_WANTED;
	entry = find_tracked(sk, HEAD(&h, u64, skc_cookie));
	if (entry && still_the_same(&entry->owner) &&
	    file_at(entry->owner.task, entry->owner.fd) == file)
		return ADOPT_KNOWN;
	identify(&fresh.owner, task, how);
	fresh.owner.fd = fd;
	fresh.cookie = entry ? entry->cookie : number_of(HEAD(&h, u64, skc_cookie));
	fresh.since_ns = entry ? entry->since_ns : 0;
	if (!track(sk, &fresh))
		return ADOPT_NO_ROOM;
	if (HEAD(&h, u8, skc_state) != TCP_LISTEN)
		return ADOPT_DONE;
	adopt_listener(sk, &h, !entry);
	return wanted ? ADOPT_DONE_LISTENER : ADOPT_ONLY_LISTENER;
}
