/*
 * The Python frames of current, as CPython's own structures have them: no flag, no
 * agent, nothing in the target changes. Only within a system call, where the thread
 * cannot change its frames. Every offset comes from probes/enrich/stacks/cpython.py,
 * which has checked them on that very process; here code objects stay numbers.
 */

#ifdef STACK_PYTHON
#define PYTHON_FRAMES 32
#define PYTHON_STEPS 48    /* frames, and the marks that calls from C leave between them */
#define PYTHON_THREADS 256 /* looked through for the thread's state, once per thread */
#define PYTHON_STATES 4
#define PYTHON_FRAME_BYTES 128
#define PYTHON_CODE_WORDS 12
#define PYTHON_TEXT_BYTES 64
#define PYTHON_OBJECT_HASH 24 /* PyBytesObject.ob_shash of 3.11 */
#define PYTHON_NAMESPACES 32  /* MAX_PID_NS_LEVEL, include/linux/pid_namespace.h */
#define PYTHON_NO_FIELD 0xffffffff
#define PYTHON_NATIVE 64 /* native frames: FRAMES of bpf/stack.h */
#define PYTHON_NO_JOINT 255
#define PYTHON_NO_VARIABLES (1ULL << 62)

/* How a walk ended: class End in probes/enrich/stacks/cpython.py. */
#define PYTHON_COMPLETE 0
#define PYTHON_DEEP 1       /* more frames than fit */
#define PYTHON_UNREADABLE 2 /* paged out, or not what the layout says */
#define PYTHON_NO_LAYOUT 3  /* no Python, or user space has not seen it yet */
#define PYTHON_NO_THREAD 4  /* never ran Python, or behind too many other threads */
#define PYTHON_AMBIGUOUS 5  /* runs in several interpreters at once */

/* Where a process's interpreter lies, and the offsets of its fields in bytes. */
struct python_layout {
	u64 runtime; /* the address of _PyRuntime */
	u32 interpreters;
	u32 next_interpreter;
	u32 threads;
	u32 links;     /* of a thread: struct python_links */
	u32 ids;       /* of a thread: struct python_ids */
	u32 status;    /* of a thread: bit PYTHON_BOUND; not before 3.12 */
	u32 current;   /* of a thread: its frame, until 3.12 by way of a "C frame" */
	u32 in_cframe; /* until 3.12 */
	u32 code;      /* this and what follows: of a frame */
	u32 previous;
	u32 instruction;
	u32 owner;
	u32 is_entry;    /* 3.11 */
	u32 first_mark;  /* an owner from this number on marks a call from C; since 3.12 */
	u32 frame_bytes; /* all of the above lie within them */
	u32 identity;    /* the part of a code object that never changes */
	u32 identity_bytes;
	u32 linetable; /* this and what follows: 3.11; which word of that part */
	u32 qualname;
	u32 filename;
	u32 ascii_data; /* of a string */
	u32 wide_data;
};

/* PyASCIIObject */
struct python_text_head {
	u64 references;
	u64 type;
	u64 length;
	s64 hash;
	u32 state;
	u32 pad;
};

struct python_links {
	u64 previous;
	u64 next;
	u64 interpreter;
};

struct python_ids {
	u64 pthread;
	u64 tid; /* as its own pid namespace counts; after fork() in C: the parent's */
};

#define PYTHON_BOUND 8 /* of all its states the one that the thread used last */

/*
 * code == 0: a call from C that is not executing any Python. A code object may be
 * freed before user space reads it, and its memory reused: `identity` tells.
 */
struct python_frame {
	u64 code;
	u32 instruction; /* bytes from the code object; odd (PYTHON_ENTRY): called from C */
	u32 identity;
};

#define PYTHON_ENTRY 1

/* The innermost frame first. */
struct python_stack {
	u64 id; /* equal stacks of one process have the same; code objects are of one process */
	u32 count;
	u32 end;
	struct python_frame frames[PYTHON_FRAMES];
	u8 joints[PYTHON_NATIVE]; /* of each call from C: which native frame executes it */
};

/* The state of a thread; 0: it had none when that many states had been created. */
struct python_known {
	u64 thread;
	u64 created;
};

struct python_walk {
	struct python_stack stack;
	u64 interpreter;
	u64 thread;
	u64 frame;
	u64 cframe; /* 3.11: a variable of the C function that executes the frame */
	/* Of each call from C: where its C function has its variables. */
	u64 entries[PYTHON_NATIVE];
	u32 calls;
	u64 created; /* pythreads.next_unique_id, which stands before the first thread */
	u64 states[PYTHON_STATES]; /* those that may be the thread's */
	u32 found;
	u32 best;
	u32 alone; /* there is one interpreter only */
	struct python_ids own;
	u8 raw[PYTHON_FRAME_BYTES + 8];
	u64 words[16]; /* PYTHON_CODE_WORDS, and room for an index that the verifier believes */
	u64 text[PYTHON_TEXT_BYTES / 8];
	u64 file; /* the string that file_hash is of */
	u64 file_hash;
};

BPF_TABLE("lru_hash", u64, struct python_layout, python_layouts, 4096);
BPF_TABLE("lru_hash", u64, struct python_known, python_threads, 8192); /* by pid_tgid */
BPF_PERCPU_ARRAY(python_walks, struct python_walk, 1);

#define PEEK(dst, at) read_user(&(dst), sizeof(dst), at)

/* A field of the frame that was read last; the mask is for the verifier. */
#define PYTHON_FIELD(w, type, offset) (*(type *)&(w)->raw[(offset) & (PYTHON_FRAME_BYTES - 1)])

/* By what CPython knows the thread: pthread_self() and gettid(). */
static __always_inline void python_own_ids(struct python_walk *w)
{
	u64 task = bpf_get_current_task(), pid = 0;
	u32 level = 0, tid = 0;

	w->own.pthread = 0;
#ifdef O_task_struct__thread__fsbase
	READ(w->own.pthread, task, O_task_struct__thread__fsbase); /* x86: glibc and musl */
#endif
	READ(pid, task, O_task_struct__thread_pid);
	READ(level, pid, O_pid__level);
	if (level <= PYTHON_NAMESPACES)
		READ(tid, pid, O_pid__numbers + level * UPID_BYTES + O_upid__nr);
	w->own.tid = tid;
}

/*
 * pthread_self() may be that of a thread that is gone; the tid is the parent's after a
 * fork() that Python was not told of. Both together are certain; the first alone will do
 * for the one thread that a fork leaves.
 */
#define RANK_MINE 1
#define RANK_BOUND 2
#define RANK_RUNS 4
#define RANK_EXACT 8

#ifdef O_task_struct__thread__fsbase
#define PYTHON_IDS_MATCH(ids, own) ((ids).pthread == (own).pthread)
#else
#define PYTHON_IDS_MATCH(ids, own) ((ids).tid == (own).tid)
#endif

static __always_inline u32 python_is_mine(struct python_walk *w, struct python_layout *l,
					  u64 thread)
{
	struct python_ids ids = {};

	PEEK(ids, thread + l->ids);
	if (!PYTHON_IDS_MATCH(ids, w->own))
		return 0;
	if (ids.tid == w->own.tid)
		return RANK_EXACT;
	return (u32)bpf_get_current_pid_tgid() == current_tgid() ? RANK_MINE : 0;
}

static __always_inline u64 python_current(u64 thread, struct python_layout *l)
{
	u64 frame = 0, cframe;

	PEEK(frame, thread + l->current);
	if (l->in_cframe != PYTHON_NO_FIELD && frame) {
		cframe = frame;
		frame = 0;
		PEEK(frame, cframe + l->in_cframe);
	}
	return frame;
}

static __always_inline u64 python_first_thread(struct python_walk *w, struct python_layout *l)
{
	u64 thread = 0;

	PEEK(thread, w->interpreter + l->threads);
	return thread;
}

/* Into w->states; PYTHON_COMPLETE: all of them, or the one that is certain. */
static __always_inline u32 python_candidates(struct python_walk *w, struct python_layout *l)
{
	struct python_links links = {};
	struct python_ids ids = {};
	u64 thread = python_first_thread(w, l);

	LOOP (u32 i = 0; i < PYTHON_THREADS; i++) {
		if (!thread) {
			PEEK(w->interpreter, w->interpreter + l->next_interpreter);
			if (!w->interpreter)
				return PYTHON_COMPLETE;
			thread = python_first_thread(w, l); /* an idle one has none */
			continue;
		}
		if (PEEK(links, thread + l->links) || links.interpreter != w->interpreter)
			return PYTHON_UNREADABLE; /* it is being freed: the list leads nowhere */
		PEEK(ids, thread + l->ids);
		if (PYTHON_IDS_MATCH(ids, w->own)) {
			w->states[w->found & (PYTHON_STATES - 1)] = thread;
			w->found++;
			if (w->alone && ids.tid == w->own.tid)
				return PYTHON_COMPLETE;
		}
		thread = links.next;
	}
	return PYTHON_NO_THREAD;
}

static __always_inline u32 python_rank(struct python_walk *w, struct python_layout *l, u64 thread)
{
	u32 rank = python_is_mine(w, l, thread), status = 0;

	if (!rank)
		return 0;
	if (python_current(thread, l))
		rank |= RANK_RUNS;
	if (l->status != PYTHON_NO_FIELD)
		PEEK(status, thread + l->status);
	if (status & PYTHON_BOUND)
		rank |= RANK_BOUND;
	return rank;
}

/* A thread has a state in each interpreter that it ever ran in: which one is it in now? */
static __always_inline u32 python_choose(struct python_walk *w, struct python_layout *l)
{
	u32 end = PYTHON_NO_THREAD, rank;

	w->best = 0; /* in memory, where the verifier does not follow each value */
	if (w->found > PYTHON_STATES)
		return PYTHON_AMBIGUOUS;
	LOOP (u32 i = 0; i < PYTHON_STATES && i < w->found; i++) {
		rank = python_rank(w, l, w->states[i]);
		if (rank == w->best && (rank & RANK_RUNS))
			end = PYTHON_AMBIGUOUS;
		if (rank <= w->best)
			continue;
		w->best = rank;
		w->thread = w->states[i];
		end = PYTHON_COMPLETE;
	}
	return end;
}

/* A state that was freed may still look like one; but no other one leads to it. */
static __always_inline bool python_is_linked(struct python_walk *w, struct python_layout *l)
{
	struct python_links links = {};
	u64 to = 0;

	if (PEEK(links, w->thread + l->links) || links.interpreter != w->interpreter)
		return false;
	PEEK(to, links.previous
		     ? links.previous + l->links + __builtin_offsetof(struct python_links, next)
		     : w->interpreter + l->threads);
	return to == w->thread;
}

/* What an earlier search found, if it still holds; PYTHON_UNREADABLE: it does not. */
static __always_inline u32 python_recall(struct python_walk *w, struct python_layout *l, u64 id)
{
	struct python_known *known = python_threads.lookup(&id);

	PEEK(w->created, w->interpreter + l->threads - sizeof(w->created));
	if (!known || !w->alone)
		return PYTHON_UNREADABLE;
	w->thread = known->thread;
	if (!w->thread)
		return known->created == w->created ? PYTHON_NO_THREAD : PYTHON_UNREADABLE;
	if (python_is_mine(w, l, w->thread) != RANK_EXACT || !python_is_linked(w, l))
		return PYTHON_UNREADABLE;
	return PYTHON_COMPLETE;
}

static __always_inline u32 python_search(struct python_walk *w, struct python_layout *l, u64 id)
{
	struct python_known known = {.created = w->created};
	u32 end = python_candidates(w, l);

	if (end == PYTHON_COMPLETE)
		end = python_choose(w, l);
	if (end == PYTHON_COMPLETE)
		known.thread = w->thread;
	if (w->alone && (end == PYTHON_COMPLETE || end == PYTHON_NO_THREAD))
		python_threads.update(&id, &known);
	return end;
}

/* Into w->thread. */
static __always_inline u32 python_find_thread(struct python_walk *w, struct python_layout *l)
{
	u64 id = bpf_get_current_pid_tgid(), next = 0;
	u32 end;

	w->found = 0;
	if (PEEK(w->interpreter, l->runtime + l->interpreters) || !w->interpreter ||
	    PEEK(next, w->interpreter + l->next_interpreter))
		return PYTHON_UNREADABLE;
	w->alone = !next;
	python_own_ids(w);
	end = python_recall(w, l, id);
	return end == PYTHON_UNREADABLE ? python_search(w, l, id) : end;
}

/* A string's own hash, if it has one yet; else of its length and last characters. */
static __always_inline u64 python_text(struct python_walk *w, struct python_layout *l, u64 at)
{
	struct python_text_head head = {};
	u64 bytes, last; /* the verifier loses the bound of a u32 that is cut from one */
	u64 hash;

	PEEK(head, at);
	if (head.hash != -1)
		return head.hash;
	bytes = head.length * (head.state >> 2 & 7); /* PyASCIIObject.state: kind, ascii */
	last = bytes < PYTHON_TEXT_BYTES ? bytes : PYTHON_TEXT_BYTES;
	at += (head.state >> 6 & 1 ? l->ascii_data : l->wide_data) + bytes - last;
	__builtin_memset(w->text, 0, sizeof(w->text));
	read_user(w->text, last, at);
	hash = mixed(0, bytes);
	LOOP (u32 i = 0; i < PYTHON_TEXT_BYTES / 8; i++)
		hash = mixed(hash, w->text[i]);
	return hash;
}

/* Most frames of a stack are of a few files. */
static __always_inline u64 python_file(struct python_walk *w, struct python_layout *l, u64 at)
{
	if (at != w->file) {
		w->file_hash = python_text(w, l, at);
		w->file = at;
	}
	return w->file_hash;
}

/*
 * 3.11 does not number its code objects, and the parts of one that was made at run time
 * by exec() may all lie where those of its predecessor lay. Its names tell them apart.
 * What came from a file of compiled code stays, and has never hashed its line table.
 */
static __always_inline u64 python_names(struct python_walk *w, struct python_layout *l, u64 hash)
{
	s64 hashed = -1;

	if (l->linetable == PYTHON_NO_FIELD)
		return hash;
	PEEK(hashed, w->words[l->linetable & 15] + PYTHON_OBJECT_HASH);
	if (hashed == -1)
		return hash;
	hash = mixed(hash, hashed);
	hash = mixed(hash, python_text(w, l, w->words[l->qualname & 15]));
	return mixed(hash, python_file(w, l, w->words[l->filename & 15]));
}

static __always_inline u32 python_identity(struct python_walk *w, struct python_layout *l, u64 code)
{
	u64 hash = 0;
	u32 bytes = l->identity_bytes;

	w->words[PYTHON_CODE_WORDS - 1] = 0; /* 3.11 has one word less */
	if (bytes > PYTHON_CODE_WORDS * 8 || read_user(w->words, bytes, code + l->identity))
		return 0;
	LOOP (u32 i = 0; i < PYTHON_CODE_WORDS; i++)
		hash = mixed(hash, w->words[i]);
	return python_names(w, l, hash);
}

static __always_inline struct python_frame *python_slot(struct python_walk *w, u32 index)
{
	return &w->stack.frames[index & (PYTHON_FRAMES - 1)];
}

static __always_inline void python_entry(struct python_walk *w, u64 variables)
{
	w->entries[w->calls & (PYTHON_NATIVE - 1)] = variables;
	w->calls++;
	w->stack.id = mixed(w->stack.id, PYTHON_ENTRY);
}

/* Since 3.12 such a call has a frame of its own, which lies on the C stack. */
static __always_inline bool python_mark(struct python_walk *w)
{
	u32 count = w->stack.count;
	struct python_frame *last = python_slot(w, count - 1), *empty = python_slot(w, count);

	if (!count || last->instruction & PYTHON_ENTRY) {
		if (count >= PYTHON_FRAMES)
			return false;
		empty->code = empty->instruction = empty->identity = 0;
		w->stack.count++;
		last = empty;
	}
	last->instruction |= PYTHON_ENTRY;
	python_entry(w, w->frame);
	return true;
}

static __always_inline bool python_keep(struct python_walk *w, struct python_layout *l)
{
	u64 code = PYTHON_FIELD(w, u64, l->code) & ~7ULL; /* 3.14 counts references in these bits */
	u64 at = PYTHON_FIELD(w, u64, l->instruction) - code;
	u32 count = w->stack.count;
	struct python_frame *frame = python_slot(w, count);

	if (count >= PYTHON_FRAMES)
		return false;
	frame->code = code;
	frame->instruction = at >> 31 ? 0 : at & ~PYTHON_ENTRY;
	frame->identity = python_identity(w, l, code);
	w->stack.id = mixed(w->stack.id, code ^ frame->instruction);
	w->stack.id = mixed(w->stack.id, frame->identity);
	w->stack.count++;
	if (l->is_entry != PYTHON_NO_FIELD && PYTHON_FIELD(w, u8, l->is_entry)) {
		frame->instruction |= PYTHON_ENTRY;
		python_entry(w, w->cframe);
		PEEK(w->cframe, w->cframe + l->in_cframe + 8); /* _PyCFrame.previous */
	}
	return true;
}

/* How the walk ended; PYTHON_COMPLETE with a frame left: it goes on. */
static __always_inline u32 python_step(struct python_walk *w, struct python_layout *l)
{
	u32 bytes = l->frame_bytes;

	if (bytes > PYTHON_FRAME_BYTES || read_user(w->raw, bytes, w->frame))
		return PYTHON_UNREADABLE;
	if (PYTHON_FIELD(w, u8, l->owner) >= l->first_mark ? !python_mark(w) : !python_keep(w, l))
		return PYTHON_DEEP;
	w->frame = PYTHON_FIELD(w, u64, l->previous);
	return PYTHON_COMPLETE;
}

static __always_inline void python_frames(struct python_walk *w, struct python_layout *l)
{
	w->file = w->cframe = 0;
	PEEK(w->cframe, w->thread + l->current);
	w->frame = python_current(w->thread, l);
	LOOP (u32 i = 0; i < PYTHON_STEPS && w->frame; i++) {
		w->stack.end = python_step(w, l);
		if (w->stack.end != PYTHON_COMPLETE)
			return;
	}
	if (w->frame)
		w->stack.end = PYTHON_DEEP;
}

/* Fills w->stack. `space`: the key that user space put the layout under. */
static __always_inline void python_walk(struct python_walk *w, u64 space)
{
	struct python_layout *l = python_layouts.lookup(&space);

	w->stack.count = w->calls = 0;
	__builtin_memset(w->stack.joints, PYTHON_NO_JOINT, sizeof(w->stack.joints));
	w->stack.end = PYTHON_NO_LAYOUT;
	if (!l)
		return;
	READ(w->stack.id, current_leader(), O_task_struct__start_boottime);
	w->stack.id = mixed(w->stack.id, current_tgid());
	w->stack.end = python_find_thread(w, l);
	if (w->stack.end == PYTHON_COMPLETE)
		python_frames(w, l);
	w->stack.id = mixed(w->stack.id, w->stack.end);
}

/*
 * Which native frame executes which Python? `cfas`: for each native frame, the innermost
 * first, the stack pointer that its caller goes on with; its variables lie below.
 */
static __always_inline void python_join(struct python_walk *w, const u64 *cfas, u32 count)
{
	u64 from = cfas[0], call = 0, variables, found;

	w->entries[w->calls & (PYTHON_NATIVE - 1)] = PYTHON_NO_VARIABLES;
	LOOP (u32 native = 1; native < PYTHON_NATIVE; native++) { /* 0 makes the system call */
		if (native >= count)
			break;
		/* Without a branch: the verifier would follow both ways of each round. */
		variables = w->entries[call & (PYTHON_NATIVE - 1)];
		found = (variables - cfas[native]) >> 63 & ~(variables - from) >> 63;
		w->stack.joints[call & (PYTHON_NATIVE - 1)] = native;
		call += found;
		from = cfas[native];
	}
	w->stack.joints[call & (PYTHON_NATIVE - 1)] = PYTHON_NO_JOINT;
	LOOP (u32 i = 0; i < PYTHON_NATIVE / 8; i++)
		w->stack.id = mixed(w->stack.id, ((u64 *)w->stack.joints)[i]);
}
#endif
