/*
 * What happens to a socket besides transitions: reads of end of file, failed writes,
 * RSTs, SIGPIPE, the end of a process. Rare, so they have a small ring of their own.
 */

#ifdef DEEDS
struct deed {
	u64 ts_ns;
	u64 sk;
	u64 cookie;
	u64 start_ns;
	u64 user_stack;
	u64 birth_stack;
	u64 close_stack;
	u64 handler;
	u32 count;
	u32 pid;
	u32 tid;
	u32 uid;
	s32 fd;
	u32 cpu_pid;
	u32 cpu_tid;
	u32 netns;
	u32 inode;
	u32 recv_q;
	u32 facts;
	s32 result; /* a negative errno, an exit code, or the reason of a RST */
	u16 sport;
	u16 dport;
	u16 family;
	u8 kind;
	u8 state;
	u8 how;
	u8 disposition;
	u8 pad[2];
	u8 saddr[16];
	u8 daddr[16];
	char comm[16];
};

/* The same deed again and again, by one thread on one socket: told once a second. */
struct repeated_key {
	u64 cookie; /* not the address, which may be another socket's a moment later */
	u32 tid;
	u32 kind;
};

struct repeated {
	u64 told_ns;
	u32 count;
	u32 pad;
};

#define TOLD_EVERY_NS 1000000000ULL

/* A SIGPIPE that the write of this thread, which is about to fail, has brought about. */
struct broken_pipe {
	u64 handler;
	u8 disposition;
	u8 pad[7];
};

BPF_TABLE("lru_hash", u64, struct broken_pipe, broken_pipes, 1024); /* by pid_tgid */
BPF_TABLE("lru_hash", u32, u32, wrote_in_vain, 1024);               /* processes */
/* By sk: sockets that are gone. The RST that answers data for one is sent after that. */
BPF_TABLE("lru_hash", u64, struct tracked, ended, 4096);
BPF_RINGBUF_OUTPUT(deeds, DEED_RING_PAGES);
BPF_ARRAY(layout_deed, struct deed, 1); /* never written: tells the layout */
BPF_TABLE("lru_hash", struct repeated_key, struct repeated, repeats, 8192);

/* How often it happened since it was last told; 0: not to be told now. */
static __always_inline u32 times_to_tell(u64 cookie, u32 kind)
{
	struct repeated_key key = {
	    .cookie = cookie, .tid = (u32)bpf_get_current_pid_tgid(), .kind = kind};
	struct repeated *known = repeats.lookup(&key), fresh = {.told_ns = bpf_ktime_get_ns()};
	u32 count;

	if (!known) {
		repeats.update(&key, &fresh);
		return 1;
	}
	count = ++known->count;
	if (fresh.told_ns - known->told_ns < TOLD_EVERY_NS)
		return 0;
	known->told_ns = fresh.told_ns;
	known->count = 0;
	return count;
}

static __always_inline struct deed *deed_reserve(u32 kind)
{
	struct deed *d = deeds.ringbuf_reserve(sizeof(struct deed));

	if (!d) {
		counts.increment(COUNT_DEEDS_FULL);
		return NULL;
	}
	__builtin_memset(d, 0, sizeof(*d));
	d->ts_ns = bpf_ktime_get_ns();
	d->kind = kind;
	d->count = 1;
	d->fd = -1;
	d->cpu_pid = current_tgid();
	d->cpu_tid = (u32)bpf_get_current_pid_tgid();
	return d;
}

static __always_inline void fill_deed_flow(struct deed *d, u64 sk, struct head *h)
{
	d->sk = sk;
	d->cookie = HEAD(h, u64, skc_cookie);
	d->netns = netns_of(HEAD(h, u64, skc_net));
	d->family = HEAD(h, u16, skc_family);
	d->sport = h->sport;
	d->dport = bpf_ntohs(HEAD(h, u16, skc_dport));
	d->state = HEAD(h, u8, skc_state);
	head_addresses(h, d->saddr, d->daddr);
}

static __always_inline void fill_deed_owner(struct deed *d, struct tracked *entry)
{
	d->cookie = entry->cookie;
	d->pid = entry->owner.pid;
	d->tid = entry->owner.tid;
	d->uid = entry->owner.uid;
	d->fd = entry->owner.fd;
	d->start_ns = entry->owner.start_ns;
	d->how = entry->owner.how;
	d->birth_stack = entry->birth_stack;
	d->close_stack = entry->close_stack;
	__builtin_memcpy(d->comm, entry->owner.comm, sizeof(d->comm));
}

static __always_inline void fill_deed_facts(struct deed *d, u64 sk, struct head *h)
{
	u64 socket = socket_of(sk), file = file_of(socket);

	d->inode = inode_of(file);
	d->recv_q = sequence_gap(sk, O_tcp_sock__rcv_nxt, O_tcp_sock__copied_seq);
	note_lock(&d->facts, sk);
	note_flags(&d->facts, sk, h);
	note_file(&d->facts, socket, file);
}

/* By the owner itself, on its own socket. */
static __always_inline void tell_deed(struct tracked *entry, u64 sk, u32 kind, u32 count,
				      s64 result, u64 stack, struct broken_pipe *pipe)
{
	struct deed *d;
	struct head h;

	if (!head_read(&h, sk))
		return;
	d = deed_reserve(kind);
	if (!d)
		return;
	fill_deed_flow(d, sk, &h);
	fill_deed_facts(d, sk, &h);
	fill_deed_owner(d, entry);
	d->tid = d->cpu_tid;
	d->facts |= FACT_TRACKED | FACT_VERIFIED;
	d->count = count;
	d->result = result;
	d->user_stack = stack;
	if (pipe) {
		d->disposition = pipe->disposition;
		d->handler = pipe->handler;
	}
	deeds.ringbuf_submit(d, 0);
}
#endif
