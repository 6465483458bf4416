/*
 * Reads and writes: the stack of a socket's last ones, and who does I/O on a
 * socket that nobody was known to hold (SCM_RIGHTS, io_uring).
 */

#define IO_READ 0
#define IO_WRITE 1

#define EAGAIN 11
#define ERESTARTSYS 512 /* and above: the call will be made again */
#define RCV_SHUTDOWN 1  /* include/net/sock.h */

static __always_inline bool is_eof(u64 sk)
{
	u64 shutdown = 0;

	READ_WIDE(shutdown, sk, sock__sk_shutdown);
	return shutdown & RCV_SHUTDOWN; /* else: a read of no bytes */
}

#ifdef DEEDS
static __always_inline void note_eof(struct tracked *entry, u64 sk, u64 stack)
{
	u32 times = times_to_tell(entry->cookie, DEED_EOF);

	if (times)
		tell_deed(entry, sk, DEED_EOF, times, 0, stack, NULL);
}

static __always_inline void note_failed_write(struct tracked *entry, u64 sk, s64 result, u64 stack)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 pid = id >> 32, times = times_to_tell(entry->cookie, DEED_WRITE_ERROR);
	struct broken_pipe *pipe = broken_pipes.lookup(&id);

	wrote_in_vain.update(&pid, &pid);
	if (times)
		tell_deed(entry, sk, DEED_WRITE_ERROR, times, result, stack, pipe);
	if (pipe)
		broken_pipes.delete(&id);
}
#endif

/* A call that had to wait, or a read that failed, has not read or written. */
static __always_inline void note_io(struct tracked *entry, u64 sk, s64 result, u32 what)
{
	u64 stack;

	if (result == -EAGAIN || result <= -ERESTARTSYS || (what == IO_READ && result < 0))
		return;
	if (!comm_is_wanted(entry->owner.comm))
		return;
	stack = user_stack();
	if (what == IO_WRITE) {
		entry->write_stack = stack;
#ifdef DEEDS
		if (result < 0)
			note_failed_write(entry, sk, result, stack);
#endif
		return;
	}
	entry->read_stack = stack;
	if (result == 0 && is_eof(sk)) {
		entry->eof_stack = stack;
#ifdef DEEDS
		note_eof(entry, sk, stack);
#endif
	}
}

/* Who does this I/O? The table learns it, if it did not know. */
static __always_inline struct tracked *owner_does_io(u64 sk)
{
	u32 pid = current_tgid();
	struct tracked *entry = sockets.lookup(&sk);
	u64 file;

	if (entry ? entry->owner.pid == pid : TRACE_ALL_OWNERS)
		return entry;
	file = file_of(socket_of(sk));
	if (!file || (current_flags() & PF_KTHREAD))
		return NULL;
	if (entry && still_holds(&entry->owner, file))
		return NULL;
	if (entry) {
		identify_current(&entry->owner, HOW_LAST_IO);
		entry->owner.fd = current_fd_of(file);
		return entry;
	}
	found_in_hand(sk, current_fd_of(file), HOW_LAST_IO, 0);
	return sockets.lookup(&sk);
}

static __always_inline void io(u64 sk, s64 result, u32 what)
{
	struct tracked *entry;

	if (!pid_is_traced(current_tgid()))
		return;
	sk = tcp_sk(sk);
	entry = owner_does_io(sk);
#if defined(STACK_USER) || defined(DEEDS)
	if (entry)
		note_io(entry, sk, result, what);
#endif
}

#ifdef HAVE_IO_LENGTH
/* sock:sock_recv_length, sock:sock_send_length (6.3). */
int on_receive(struct bpf_raw_tracepoint_args *ctx)
{
	io(ctx->args[0], (s32)ctx->args[1], IO_READ);
	return 0;
}

int on_send(struct bpf_raw_tracepoint_args *ctx)
{
	io(ctx->args[0], (s32)ctx->args[1], IO_WRITE);
	return 0;
}
#endif

#ifdef IO_BY_SYSCALL
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* The socket behind the descriptor that is the system call's first argument; 0: none. */
static __always_inline u64 sk_of_call(void)
{
	u64 file = file_at(current_leader(), syscall_fd()), inode = 0;
	u16 mode = 0;

	if (!file)
		return 0;
	READ(inode, file, O_file__f_inode);
	READ(mode, inode, O_inode__i_mode);
	if ((mode & S_IFMT) != S_IFSOCK)
		return 0;
	return sk_of_file(file);
}

static __always_inline void call_ends(void *ctx, u32 what)
{
	u64 sk;

	if (!pid_is_traced(current_tgid()))
		return;
	sk = sk_of_call();
	if (sk && is_tcp(sk))
		io(sk, *(s64 *)(ctx + O_sys_exit_accept__ret), what);
}

/* The exits of read, recvfrom, ...: every such call of the host, so only before 6.3. */
int on_read_exit(void *ctx)
{
	call_ends(ctx, IO_READ);
	return 0;
}

int on_write_exit(void *ctx)
{
	call_ends(ctx, IO_WRITE);
	return 0;
}
#endif
