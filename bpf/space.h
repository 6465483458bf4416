/*
 * Which program image is a process running? Code addresses mean nothing without
 * it. Children share it until they exec, so that what was learnt of a prefork
 * server's parent holds for its workers; dlopen() makes it another one.
 */

static __always_inline u64 mixed(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9E3779B97F4A7C15ULL;
	return hash ^ (hash >> 29);
}

#ifdef STACK_USER
/* By tgid: when the process last mapped a program or library (by exec, mmap; from fork on). */
BPF_TABLE("lru_hash", u32, u64, code_loaded, 32768);
#endif

/*
 * `image` is made anew by exec, and when a library is loaded; `space` also by any other
 * change of how much is mapped executable (JIT compilers).
 * Both 0: it has none (a kernel thread, or a process that has given it up to exit).
 */
struct space {
	u64 image;
	u64 space;
};

/* What exec set up, at random places where that is not switched off; 0: see above. */
static __always_inline u64 program_of(u64 mm)
{
	u64 at = 0, file = 0, program = 0;

	READ(at, mm, O_mm_struct__start_code);
	program = mixed(program, at);
	READ(at, mm, O_mm_struct__start_stack);
	program = mixed(program, at);
	READ(at, mm, O_mm_struct__start_brk);
	program = mixed(program, at);
	READ(at, mm, O_mm_struct__mmap_base);
	program = mixed(program, at);
	READ(file, mm, O_mm_struct__exe_file);
	return mixed(program, inode_of(file));
}

static __always_inline void space_of(struct space *found, u64 task)
{
	u64 mm = 0, at = 0, *when = NULL;
	u32 tgid = 0;

	found->image = found->space = 0;
	READ(mm, task, O_task_struct__mm);
	if (!mm)
		return;
#ifdef STACK_USER
	READ(tgid, task, O_task_struct__tgid);
	when = code_loaded.lookup(&tgid);
#endif
	found->image = mixed(program_of(mm), when ? *when : 0);
	READ(at, mm, O_mm_struct__exec_vm); /* pages that are mapped executable */
	found->space = mixed(found->image, at);
}
