/*
 * Reading kernel memory. No kernel struct is declared: every offset O_x__y (and
 * width Z_x__y) is a -D constant that probes/engine/offsets.py took from the
 * running kernel's BTF. A field that this kernel lacks has no constant, and its
 * reader is compiled out: nothing here ever reads a guess.
 */

/* Functions, as BCC's rewriter takes long over each place where such a helper is called. */
static __always_inline long read_kernel(void *to, u32 bytes, u64 at)
{
	return bpf_probe_read_kernel(to, bytes, (void *)at);
}

static __always_inline long read_user(void *to, u32 bytes, u64 at)
{
	return bpf_probe_read_user(to, bytes, (void *)at);
}

#define READ(dst, base, offset) read_kernel(&(dst), sizeof(dst), (u64)(base) + (offset))

/* For a field whose width differs between kernels; dst is a zeroed u64 (little-endian). */
#define READ_WIDE(dst, base, field) read_kernel(&(dst), Z_##field, (u64)(base) + O_##field)

/* LLVM unrolls small loops, which only makes the program larger and the start slower. */
#define LOOP _Pragma("clang loop unroll(disable)") for

#define PF_EXITING 0x00000004   /* include/linux/sched.h, unchanged since 2.6 */
#define PF_IO_WORKER 0x00000010 /* 5.12; what stood there before is long gone */
#define PF_KTHREAD 0x00200000

/* The first bytes of every socket: struct sock_common, read in one go. */
struct head {
	u8 raw[SOCK_COMMON_BYTES];
	u32 sport;
};

#define HEAD(h, type, field) (*(type *)&(h)->raw[O_sock_common__##field])

static __always_inline bool head_read(struct head *h, u64 sk)
{
	if (READ(h->raw, sk, 0))
		return false;
	u16 family = HEAD(h, u16, skc_family), port;
	h->sport = HEAD(h, u16, skc_num);
	if (!h->sport) { /* on the way to CLOSE the number is given back first */
		READ(port, sk, O_inet_sock__inet_sport);
		h->sport = bpf_ntohs(port);
	}
	return family == AF_INET || family == AF_INET6;
}

static __always_inline bool is_tcp(u64 sk)
{
	u64 protocol = 0;

	/* The same tracepoints fire for SCTP, DCCP and the MPTCP socket above TCP. */
	READ_WIDE(protocol, sk, sock__sk_protocol);
	return protocol == IPPROTO_TCP;
}

/*
 * MPTCP: what a process holds is the MPTCP socket; the TCP socket below it, the
 * subflow, belongs to the kernel. From one to the other, and back.
 */
static __always_inline u64 held_sk(u64 sk)
{
#ifdef HAVE_MPTCP
	u64 context = 0, connection = 0;
	u8 is_mptcp = 0;

	READ(is_mptcp, sk, O_tcp_sock__is_mptcp);
	if (!is_mptcp)
		return sk;
	READ(context, sk, O_inet_connection_sock__icsk_ulp_data);
	READ(connection, context, O_mptcp_subflow_context__conn);
	return connection ? connection : sk;
#else
	return sk;
#endif
}

static __always_inline u64 tcp_sk(u64 sk)
{
#ifdef HAVE_MPTCP
	u64 protocol = 0, first = 0;

	READ_WIDE(protocol, sk, sock__sk_protocol);
	if (protocol != IPPROTO_MPTCP)
		return sk;
	READ(first, sk, O_mptcp_sock__first);
	return first ? first : sk;
#else
	return sk;
#endif
}

static __always_inline u64 socket_of(u64 sk)
{
	u64 socket = 0;

	READ(socket, held_sk(sk), O_sock__sk_socket);
	return socket;
}

static __always_inline u64 file_of(u64 socket)
{
	u64 file = 0;

	if (socket)
		READ(file, socket, O_socket__file);
	return file;
}

/* And back: the TCP socket behind a socket's file. */
static __always_inline u64 sk_of_file(u64 file)
{
	u64 socket = 0, sk = 0;

	READ(socket, file, O_file__private_data);
	READ(sk, socket, O_socket__sk);
	return tcp_sk(sk);
}

static __always_inline u32 inode_of(u64 file)
{
	u64 inode = 0, number = 0;

	if (!file)
		return 0;
	READ(inode, file, O_file__f_inode);
	READ(number, inode, O_inode__i_ino);
	return number;
}

/* True inside the last close(): the reference count has already gone. */
static __always_inline bool file_is_closing(u64 file)
{
	s64 count = 1;

#ifdef O_file__f_ref
	/* 6.13, commit 08ef26ea9ab3 ("fs: add file_ref"): negative once dead. */
	READ(count, file, O_file__f_ref);
	return count < 0;
#else
	READ(count, file, O_file__f_count);
	return count == 0;
#endif
}

static __always_inline u32 netns_of(u64 net)
{
	u32 inum = 0;

	READ(inum, net, O_net__ns__inum);
	return inum;
}

/* Both families as 16 bytes: IPv4 as ::ffff:a.b.c.d, so that there is one code path. */
static __always_inline void map_ipv4(u8 *to, u32 address)
{
	*(u64 *)to = 0;
	*(u32 *)(to + 8) = 0xffff0000;
	*(u32 *)(to + 12) = address;
}

static __always_inline void head_addresses(struct head *h, u8 *saddr, u8 *daddr)
{
#ifdef O_sock_common__skc_v6_rcv_saddr
	if (HEAD(h, u16, skc_family) == AF_INET6) {
		__builtin_memcpy(saddr, &h->raw[O_sock_common__skc_v6_rcv_saddr], 16);
		__builtin_memcpy(daddr, &h->raw[O_sock_common__skc_v6_daddr], 16);
		return;
	}
#endif
	map_ipv4(saddr, HEAD(h, u32, skc_rcv_saddr));
	map_ipv4(daddr, HEAD(h, u32, skc_daddr));
}

static __always_inline bool is_mapped_ipv4(const u8 *address)
{
	return *(u64 *)address == 0 && *(u32 *)(address + 8) == 0xffff0000;
}
