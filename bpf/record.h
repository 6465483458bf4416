/*
 * The one record that travels to user space. probes/engine/layout.py reads its
 * fields from the compiled program, so no second definition exists.
 */

struct state_record {
	u64 ts_ns;
	u64 since_ns;    /* when old_state was entered; 0: not seen */
	u64 syn_recv_ns; /* a child's first two transitions, told together with its next */
	u64 established_ns;
	u64 accepted_ns;
	u64 sk;
	u64 cookie;
	u64 start_ns;
	u64 listener_start_ns;
	u64 user_stack; /* ids, see stack.h */
	u64 birth_stack;
	u64 read_stack;
	u64 write_stack;
	u64 eof_stack;
	u64 close_stack;
	u32 pid;
	u32 tid;
	u32 uid;
	s32 fd;
	u32 cpu_pid;
	u32 cpu_tid;
	u32 held_cpu_pid; /* cpu_pid of those first two */
	u32 listener_pid;
	u32 netns;
	u32 inode;
	u32 recv_q;
	u32 send_q;
	u32 fin_wait2_jiffies;
	u32 facts;
	s32 kernel_stack;
	u16 sk_err;
	u16 sport;
	u16 dport;
	u16 family;
	u8 kind;
	u8 old_state;
	u8 new_state;
	u8 how;
	u8 shutdown;
	u8 pad[3];
	u8 saddr[16];
	u8 daddr[16];
	char comm[16];
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_ARRAY(layout_state_record, struct state_record, 1); /* never written: tells the layout */

/* `carries`: how many events are lost if there is no room. */
static __always_inline struct state_record *record_reserve(u32 carries)
{
	struct state_record *record = events.ringbuf_reserve(sizeof(struct state_record));

	if (!record)
		counts.increment(COUNT_RING_FULL, carries);
	return record;
}

static __always_inline u32 sequence_gap(u64 sk, u32 ahead, u32 behind)
{
	u32 a = 0, b = 0;

	READ(a, sk, ahead);
	READ(b, sk, behind);
	return (s32)(a - b) > 0 ? a - b : 0;
}

/* The same figures as ss prints (net/ipv4/tcp_diag.c). */
static __always_inline void fill_queues(struct state_record *r, u64 sk, u32 state)
{
	u64 backlog = 0, limit = 0;

	if (state == TCP_LISTEN) {
		READ_WIDE(backlog, sk, sock__sk_ack_backlog);
		READ_WIDE(limit, sk, sock__sk_max_ack_backlog);
		r->recv_q = backlog;
		r->send_q = limit;
		return;
	}
	r->recv_q = sequence_gap(sk, O_tcp_sock__rcv_nxt, O_tcp_sock__copied_seq);
	r->send_q = sequence_gap(sk, O_tcp_sock__write_seq, O_tcp_sock__snd_una);
}

/*
 * FACT_x bits are gathered in memory and not in a register: the verifier follows
 * each value of a register, which with nine bits multiplies its work (and the
 * time to start) several hundredfold.
 */
static __always_inline void note_lock(volatile u32 *facts, u64 sk)
{
	u32 owned = 0;

	/* Set: current itself holds the socket's lock, so this is its own system call
	 * or the backlog that arrived during one. Clear: softirq or timer. */
	READ(owned, sk, O_sock__sk_lock__owned);
	if (!owned)
		return;
	*facts |= FACT_LOCKED_BY_CURRENT;
	if (current_flags() & PF_EXITING)
		*facts |= FACT_CURRENT_EXITING;
}

static __always_inline void note_flags(volatile u32 *facts, u64 sk, struct head *h)
{
	u64 flags = HEAD(h, u64, skc_flags), linger = 1;

	if (flags & (1ULL << SOCK_DEAD))
		*facts |= FACT_ORPHAN;
	if (flags & (1ULL << SOCK_DONE))
		*facts |= FACT_FIN_RECEIVED;
	if (flags & (1ULL << SOCK_LINGER)) {
		READ_WIDE(linger, sk, sock__sk_lingertime);
		if (!linger)
			*facts |= FACT_LINGER_ZERO;
	}
}

static __always_inline void note_file(volatile u32 *facts, u64 socket, u64 file)
{
	if (socket)
		*facts |= FACT_HAS_SOCKET;
	if (!file)
		return;
	*facts |= FACT_HAS_FILE;
	if (file_is_closing(file))
		*facts |= FACT_FILE_CLOSING;
}

/* No room for one more TIME_WAIT (net.ipv4.tcp_max_tw_buckets): CLOSE was the end then. */
static __always_inline void note_time_wait(volatile u32 *facts, u64 net)
{
#ifdef O_inet_timewait_death_row__tw_refcount
	u64 row = net + O_net__ipv4__tcp_death_row;
	u32 count = 0, limit = 0;

	READ(count, row, O_inet_timewait_death_row__tw_refcount); /* starts at 1 */
	READ(limit, row, O_inet_timewait_death_row__sysctl_max_tw_buckets);
	if (count > limit)
		*facts |= FACT_TIME_WAIT_FULL;
#endif
}

/* How long an orphan stays in FIN_WAIT2: tcp_fin_time() of include/net/tcp.h. */
static __always_inline u32 fin_wait2_jiffies(u64 sk, u64 net)
{
	u64 linger2 = 0, sysctl = 0, rto = 0;

	READ_WIDE(linger2, sk, tcp_sock__linger2);
	READ_WIDE(sysctl, net, net__ipv4__sysctl_tcp_fin_timeout);
	READ_WIDE(rto, sk, inet_connection_sock__icsk_rto);
	u32 wait = linger2 ? (u32)linger2 : (u32)sysctl, least = ((u32)rto << 2) - ((u32)rto >> 1);
	return (s32)wait < (s32)least ? least : wait;
}

static __always_inline void fill_socket(struct state_record *r, u64 sk, struct head *h)
{
	u64 error = 0, shutdown = 0, id = bpf_get_current_pid_tgid();

	r->ts_ns = bpf_ktime_get_ns();
	r->sk = sk;
	r->cookie = HEAD(h, u64, skc_cookie);
	r->cpu_pid = id >> 32;
	r->cpu_tid = id;
	r->netns = netns_of(HEAD(h, u64, skc_net));
	r->family = HEAD(h, u16, skc_family);
	r->sport = h->sport;
	r->dport = bpf_ntohs(HEAD(h, u16, skc_dport));
	head_addresses(h, r->saddr, r->daddr);
	READ_WIDE(error, sk, sock__sk_err);
	READ_WIDE(shutdown, sk, sock__sk_shutdown);
	r->sk_err = error;
	r->shutdown = shutdown;
}

static __always_inline void fill_owner(struct state_record *r, struct owner *who)
{
	r->pid = who->pid;
	r->tid = who->tid;
	r->uid = who->uid;
	r->fd = who->fd;
	r->start_ns = who->start_ns;
	r->how = who->how;
	__builtin_memcpy(r->comm, who->comm, sizeof(r->comm));
}

static __always_inline void fill_stacks(struct state_record *r, struct tracked *entry)
{
	r->birth_stack = entry->birth_stack;
	r->read_stack = entry->read_stack;
	r->write_stack = entry->write_stack;
	r->eof_stack = entry->eof_stack;
	r->close_stack = entry->close_stack;
}

static __always_inline void fill_no_owner(struct state_record *r)
{
	r->pid = r->tid = r->uid = 0;
	r->fd = -1;
	r->start_ns = 0;
	r->how = HOW_UNKNOWN;
	__builtin_memset(r->comm, 0, sizeof(r->comm));
}

static __always_inline void fill_transition(struct state_record *r, u64 sk, struct head *h,
					    u32 old_state, u32 new_state)
{
	u64 socket = socket_of(sk), file = file_of(socket);

	fill_socket(r, sk, h);
	fill_queues(r, sk, new_state == TCP_LISTEN ? TCP_LISTEN : old_state);
	fill_no_owner(r);
	r->old_state = old_state;
	r->new_state = new_state;
	r->inode = inode_of(file);
	r->since_ns = r->syn_recv_ns = r->established_ns = r->accepted_ns = 0;
	r->held_cpu_pid = r->listener_pid = r->listener_start_ns = 0;
	r->user_stack = r->birth_stack = r->read_stack = r->write_stack = r->eof_stack = 0;
	r->close_stack = 0;
	r->kernel_stack = -1;
	r->fin_wait2_jiffies = 0;
	r->facts = 0;
	note_lock(&r->facts, sk);
	note_flags(&r->facts, sk, h);
	note_file(&r->facts, socket, file);
	if (inventory_is_running())
		r->facts |= FACT_IN_WINDOW;
	if (new_state == TCP_CLOSE) {
		r->fin_wait2_jiffies = fin_wait2_jiffies(sk, HEAD(h, u64, skc_net));
		note_time_wait(&r->facts, HEAD(h, u64, skc_net));
	}
}
