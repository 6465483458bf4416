/* RSTs: tcp:tcp_send_reset and tcp:tcp_receive_reset (4.15). */

#ifdef DEEDS
static __always_inline bool is_whole_socket(struct head *h)
{
	u8 state = HEAD(h, u8, skc_state);

	/* Of a request or a TIME_WAIT remainder only the first bytes are a socket's. */
	return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

static __always_inline struct tracked *owner_or_last(u64 sk, u64 cookie)
{
	struct tracked *entry = find_tracked(sk, cookie);

	if (entry)
		return entry;
	entry = ended.lookup(&sk);
	return entry && entry->cookie == cookie ? entry : NULL;
}

static __always_inline void tell_reset(u64 sk, u32 kind, s64 reason)
{
	struct tracked *entry;
	struct deed *d;
	struct head h;

	if (!sk || !head_read(&h, sk) || !socket_is_wanted(sk, &h))
		return;
	entry = is_whole_socket(&h) ? owner_or_last(sk, HEAD(&h, u64, skc_cookie)) : NULL;
	if (!entry && !TRACE_ALL_OWNERS)
		return;
	if (entry && !comm_is_wanted(entry->owner.comm))
		return;
	d = deed_reserve(kind);
	if (!d)
		return;
	fill_deed_flow(d, sk, &h);
	d->result = reason;
	if (is_whole_socket(&h))
		fill_deed_facts(d, sk, &h);
	if (entry) {
		fill_deed_owner(d, entry);
		d->facts |= FACT_TRACKED;
		if (settle_owner(&entry->owner, file_of(socket_of(sk)), d->facts))
			d->facts |= FACT_VERIFIED;
		if ((d->facts & FACT_LOCKED_BY_CURRENT) && d->cpu_pid == d->pid)
			d->user_stack = user_stack();
	}
	deeds.ringbuf_submit(d, 0);
}

/* sk, the segment that caused it (NULL: our own close), and since 6.10 the reason. */
int on_reset_sent(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef HAVE_RESET_REASON
	tell_reset(ctx->args[0], DEED_RESET_SENT, (u32)ctx->args[2]);
#else
	tell_reset(ctx->args[0], DEED_RESET_SENT, -1);
#endif
	return 0;
}

int on_reset_received(struct bpf_raw_tracepoint_args *ctx)
{
	tell_reset(ctx->args[0], DEED_RESET_RECEIVED, -1);
	return 0;
}
#endif
