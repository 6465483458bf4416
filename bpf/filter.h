/*
 * What the user asked for, decided before any other work. Scalars are -D
 * constants, so that a filter nobody set costs no instruction; sets are maps.
 */

struct prefix {
	u32 bits;
	u8 address[16];
};

BPF_HASH(traced_pids, u32, u64, 65536);
BPF_HASH(wanted_ports, u32, u32, 1024);
BPF_HASH(wanted_netns, u32, u32, 1024);
BPF_HASH(wanted_cgroups, u64, u32, 1024);
BPF_LPM_TRIE(wanted_prefixes, struct prefix, u32, 1024);

struct process_name {
	char text[16];
};
BPF_HASH(wanted_comms, struct process_name, u32, 256);

#define PORT_LOCAL 1
#define PORT_REMOTE 2

static __always_inline bool pid_is_traced(u32 pid)
{
#ifdef FILTER_PIDS
	return traced_pids.lookup(&pid) != NULL;
#else
	return true;
#endif
}

static __always_inline bool comm_is_wanted(const char *comm)
{
#ifdef FILTER_COMMS
	struct process_name name = {};

	bpf_probe_read_kernel_str(name.text, sizeof(name.text), comm);
	return wanted_comms.lookup(&name) != NULL;
#else
	return true;
#endif
}

static __always_inline bool ports_are_wanted(struct head *h)
{
#ifdef FILTER_PORTS
	u32 local = h->sport, remote = bpf_ntohs(HEAD(h, u16, skc_dport));
	u32 *side = wanted_ports.lookup(&local);

	if (side && (*side & PORT_LOCAL))
		return true;
	side = wanted_ports.lookup(&remote);
	return side && (*side & PORT_REMOTE);
#else
	return true;
#endif
}

static __always_inline bool prefix_is_wanted(const u64 *address)
{
	struct prefix key = {.bits = 128};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return wanted_prefixes.lookup(&key) != NULL;
}

static __always_inline bool addresses_are_wanted(struct head *h)
{
#if defined(FILTER_FAMILY) || defined(FILTER_PREFIXES)
	u64 source[2], target[2]; /* aligned, which struct prefix is not */

	head_addresses(h, (u8 *)source, (u8 *)target);
#ifdef FILTER_FAMILY
	if (is_mapped_ipv4((u8 *)source) != (FILTER_FAMILY == AF_INET))
		return false;
#endif
#ifdef FILTER_PREFIXES
	if (!prefix_is_wanted(source) && !prefix_is_wanted(target))
		return false;
#endif
#endif
	return true;
}

static __always_inline bool netns_is_wanted(struct head *h)
{
#ifdef FILTER_NETNS
	u32 inum = netns_of(HEAD(h, u64, skc_net));

	return wanted_netns.lookup(&inum) != NULL;
#else
	return true;
#endif
}

static __always_inline bool cgroup_is_wanted(u64 sk)
{
#ifdef FILTER_CGROUPS
	u64 cgroup = 0, node = 0, id = 0;

	READ(cgroup, sk, O_sock__sk_cgrp_data);
	READ(node, cgroup, O_cgroup__kn);
	READ(id, node, O_kernfs_node__id);
	return wanted_cgroups.lookup(&id) != NULL;
#else
	return true;
#endif
}

static __always_inline bool states_are_wanted(u32 old_state, u32 new_state)
{
#ifdef FILTER_STATES
	return (FILTER_STATES & ((1 << old_state) | (1 << new_state))) != 0;
#else
	return true;
#endif
}

/* Everything that the socket alone decides; the owner is asked separately. */
static __always_inline bool socket_is_wanted(u64 sk, struct head *h)
{
	return ports_are_wanted(h) && addresses_are_wanted(h) && netns_is_wanted(h) &&
	       cgroup_is_wanted(sk);
}
