/*
 * The user stack of current, without frame pointers: a walk by the rows of the
 * programs' call frame tables, which user space puts into `rows` for each code
 * address that was ever met (probes/enrich/stacks/). At the first address that has
 * no row yet, a copy of the rest of the stack goes to user space, which finishes the
 * walk and adds the rows; so each address costs one copy, and from then on a
 * stack is its walk, exact also where only an outer frame differs.
 */

#ifdef STACK_USER
#define FRAMES 64
#define SNAPSHOT_BYTES 16384
#define SNAPSHOT_STEP 512
#define ONE_SECOND_NS 1000000000ULL

struct row_key {
	u64 mapping; /* the image, for code that lies in a file; the space, for other code */
	u64 address; /* shifted left by one; bit 0: see EXACT */
};

/* The address itself is executed next. Else it is a return address: the call stands before it. */
#define EXACT 1

struct row {
	s32 cfa;
	s32 return_address;
	s32 frame_pointer;
	u32 kind;
};

/* A finished walk. */
struct chain {
	u64 python; /* of python_stacks; 0: not Python */
	u64 image;
	u64 space;
	u64 addresses[FRAMES]; /* as in row_key, the innermost first */
	u32 count;
	u32 pid;
	u32 end;
	u32 pad;
};

struct snapshot {
	u64 id;
	u64 python;
	u64 image;
	u64 space;
	u64 stack_pointer;
	u64 frame_pointer;
	u64 link; /* arm64's link register, while it holds the return address */
	u64 addresses[FRAMES];
	u32 count; /* of addresses; the last one has no row */
	u32 pid;
	u32 tid;
	u32 bytes;
	u8 stack[SNAPSHOT_BYTES]; /* from stack_pointer upwards */
};

struct walk {
	u64 id;
	u64 address;
	u64 stack_pointer;
	u64 frame_pointer;
	u64 link;
	u64 cfas[FRAMES]; /* of each frame: the stack pointer that its caller goes on with */
	struct chain chain;
};

struct budget {
	u64 second_ns;
	u64 used;
};

BPF_TABLE("lru_hash", struct row_key, struct row, rows, 32768);
BPF_TABLE("lru_hash", u64, struct chain, chains, 8192);
#ifdef STACK_PYTHON
BPF_TABLE("lru_hash", u64, struct python_stack, python_stacks, 8192);
BPF_TABLE("lru_hash", u64, u32, python_images, 4096); /* those that run CPython */
BPF_ARRAY(layout_python_stack, struct python_stack, 1);
#endif
BPF_PERCPU_ARRAY(walks, struct walk, 1);
BPF_ARRAY(budgets, struct budget, 1);
BPF_RINGBUF_OUTPUT(snapshots, SNAPSHOT_RING_PAGES);
BPF_ARRAY(layout_snapshot, struct snapshot, 1); /* never written: tells the layout */
BPF_ARRAY(layout_chain, struct chain, 1);

#define READ_USER(dst, address) read_user(&(dst), sizeof(dst), address)

#define PSTATE_32 0x10 /* arm64: PSR_MODE32_BIT, ABI */

/* Bits that arm64 may use to sign a return address. */
#define ADDRESS_BITS ((1ULL << 56) - 1)

static __always_inline bool start_walk(struct walk *w)
{
	u64 regs = user_registers(), at = 0;

#ifdef O_pt_regs__cs
	READ(at, regs, O_pt_regs__cs);
	if ((u16)at == USER32_CS)
		return false;
	READ(at, regs, O_pt_regs__ip);
#else
	READ(at, regs, O_pt_regs__pstate);
	if (at & PSTATE_32)
		return false;
	READ(w->link, regs, O_pt_regs__link);
	READ(at, regs, O_pt_regs__pc);
#endif
	READ(w->stack_pointer, regs, O_pt_regs__sp);
	READ(w->frame_pointer, regs, O_pt_regs__frame_pointer);
	w->address = (at & ADDRESS_BITS) << 1 | EXACT;
	w->id = w->chain.space;
	w->chain.count = 0;
	return true;
}

/* The kernel put the interrupted registers on the stack (struct rt_sigframe). */
static __always_inline u32 leave_signal(struct walk *w)
{
	u64 context = w->stack_pointer + SIGNAL_CONTEXT, at = 0;

	if (READ_USER(at, context + SIGNAL_PC) ||
	    READ_USER(w->frame_pointer, context + SIGNAL_FRAME_POINTER) ||
	    READ_USER(w->stack_pointer, context + SIGNAL_STACK_POINTER))
		return WALK_UNREADABLE;
#ifdef SIGNAL_LINK
	READ_USER(w->link, context + SIGNAL_LINK);
#endif
	w->address = at << 1 | EXACT;
	return WALK_GOES_ON;
}

static __always_inline u32 leave_function(struct walk *w, struct row *row)
{
	u64 cfa, at, saved = 0;
	s32 where = row->return_address;

	cfa = (row->kind == ROW_SP ? w->stack_pointer : w->frame_pointer) + row->cfa;
	if (row->kind == ROW_FP_DEREF) {
		if (READ_USER(cfa, cfa) || READ_USER(saved, w->frame_pointer))
			return WALK_UNREADABLE;
		w->frame_pointer = saved;
	} else if (row->frame_pointer) {
		if (READ_USER(saved, cfa + row->frame_pointer))
			return WALK_UNREADABLE;
		w->frame_pointer = saved;
	}
	at = w->link;
	if (where && READ_USER(at, cfa + where))
		return WALK_UNREADABLE;
	if (cfa < w->stack_pointer)
		return WALK_LOST;
	w->stack_pointer = cfa;
	w->address = (at & ADDRESS_BITS) << 1;
	if (at)
		return WALK_GOES_ON;
	return row->kind == ROW_GUESS ? WALK_LOST : WALK_COMPLETE;
}

static __always_inline u32 step(struct walk *w)
{
	struct row_key key = {.mapping = w->chain.image, .address = w->address};
	struct row *row = rows.lookup(&key);

	if (!row) {
		key.mapping = w->chain.space;
		row = rows.lookup(&key);
	}
	if (!row)
		return WALK_MISSING;
	if (row->kind == ROW_END)
		return WALK_COMPLETE;
	if (row->kind == ROW_LOST)
		return WALK_LOST;
	return row->kind == ROW_SIGNAL ? leave_signal(w) : leave_function(w, row);
}

static __always_inline void walk(struct walk *w)
{
	w->chain.end = WALK_DEEP;
	LOOP (u32 i = 0; i < FRAMES; i++) {
		u32 end;

		w->chain.addresses[i] = w->address;
		w->chain.count = i + 1;
		w->id = mixed(w->id, w->address);
		end = step(w);
		w->cfas[i] = w->stack_pointer;
		if (end != WALK_GOES_ON) {
			w->chain.end = end;
			break;
		}
	}
}

/* The functions of the interpreted program, which native frames do not show. */
static __always_inline void add_python(struct walk *w)
{
	w->chain.python = 0;
#ifdef STACK_PYTHON
	int only = 0;
	struct python_walk *p = python_walks.lookup(&only);
	u64 key = mixed(w->chain.image, current_tgid()); /* code objects are of one process */

	if (!p || !python_images.lookup(&w->chain.image))
		return;
	p->stack.id = key;
	python_walk(p, key);
	if (w->chain.end != WALK_MISSING)
		python_join(p, w->cfas, w->chain.count);
	w->chain.python = p->stack.id;
	w->id = mixed(w->id, p->stack.id);
	if (!python_stacks.lookup(&w->chain.python))
		python_stacks.update(&w->chain.python, &p->stack);
#endif
}

/* A second's allowance of copies is used up: said in the stream, and by the id. */
static __always_inline bool may_copy(void)
{
	int only = 0;
	struct budget *budget = budgets.lookup(&only);
	u64 now = bpf_ktime_get_ns();

	if (!budget)
		return false;
	if (now - budget->second_ns > ONE_SECOND_NS) {
		budget->second_ns = now;
		budget->used = 0;
	}
	budget->used++; /* CPUs may overwrite each other's: a few more than allowed */
	return budget->used <= SNAPSHOTS_PER_SECOND;
}

static __always_inline void copy_stack(struct snapshot *s)
{
	s->bytes = 0;
	LOOP (u32 at = 0; at < SNAPSHOT_BYTES; at += SNAPSHOT_STEP) {
		if (read_user(&s->stack[at], SNAPSHOT_STEP, s->stack_pointer + at))
			break; /* the end of the stack: up to 511 bytes of main's caller are missed
				*/
		s->bytes = at + SNAPSHOT_STEP;
	}
}

/* The id that user space will know this stack by, once it has finished the walk. */
static __always_inline u64 unfinished_id(void)
{
	u64 cpu = bpf_get_smp_processor_id();

	return STACK_UNFINISHED | (cpu & 31) << 58 | (bpf_ktime_get_ns() & ((1ULL << 58) - 1));
}

static __always_inline u64 send_snapshot(struct walk *w)
{
	struct snapshot *s;
	u64 id;

	if (!may_copy() || !(s = snapshots.ringbuf_reserve(sizeof(struct snapshot)))) {
		counts.increment(COUNT_STACKS_SUPPRESSED);
		return STACK_SUPPRESSED;
	}
	id = unfinished_id();
	s->id = id;
	s->python = w->chain.python;
	s->image = w->chain.image;
	s->space = w->chain.space;
	s->stack_pointer = w->stack_pointer;
	s->frame_pointer = w->frame_pointer;
	s->link = w->link;
	s->count = w->chain.count;
	s->pid = current_tgid();
	s->tid = bpf_get_current_pid_tgid();
	__builtin_memcpy(s->addresses, w->chain.addresses, sizeof(s->addresses));
	copy_stack(s);
	snapshots.ringbuf_submit(s, 0);
	return id;
}

static __always_inline u64 chain_id(struct walk *w)
{
	u64 id = (mixed(w->id, w->chain.end) & ~STACK_UNFINISHED) | STACK_FIRST_CHAIN;

	if (!chains.lookup(&id)) {
		w->chain.pid = current_tgid();
		chains.update(&id, &w->chain);
	}
	return id;
}

/* Current's stack, as an id. Only for the owner of a socket that the filters want. */
static __always_inline u64 user_stack(void)
{
	int only = 0;
	struct walk *w = walks.lookup(&only);
	struct space here;

	if (!w || (current_flags() & (PF_KTHREAD | PF_IO_WORKER)))
		return STACK_NONE;
	space_of(&here, bpf_get_current_task());
	if (!here.space)
		return STACK_NONE;
	w->chain.image = here.image;
	w->chain.space = here.space;
	if (!start_walk(w))
		return STACK_USER32;
	walk(w);
	add_python(w);
	return w->chain.end == WALK_MISSING ? send_snapshot(w) : chain_id(w);
}
#else
static __always_inline u64 user_stack(void)
{
	return STACK_NONE;
}
#endif

#ifdef STACK_KERNEL
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, kernel_stacks, 4096);
#endif

/* A number of kernel_stacks; -1: not asked for; another negative number: the error. */
static __always_inline s32 kernel_stack(void *ctx)
{
#ifdef STACK_KERNEL
	return kernel_stacks.get_stackid(ctx, 0);
#else
	return -1;
#endif
}
