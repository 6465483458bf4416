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

/*
 * `image` is made anew by exec; `space` also by a change of what is mapped executable.
 * Both 0: it has none (a kernel thread, or a process that has given it up to exit).
 */
struct space {
	u64 image;
	u64 space;
};

static __always_inline void space_of(struct space *found, u64 task)
{
	u64 mm = 0, at = 0, file = 0, image = 0;

	found->image = found->space = 0;
	READ(mm, task, O_task_struct__mm);
	if (!mm)
		return;
	/* Set by exec, at random places where that is not switched off. */
	READ(at, mm, O_mm_struct__start_code);
	image = mixed(image, at);
	READ(at, mm, O_mm_struct__start_stack);
	image = mixed(image, at);
	READ(at, mm, O_mm_struct__start_brk);
	image = mixed(image, at);
	READ(at, mm, O_mm_struct__mmap_base);
	image = mixed(image, at);
	READ(file, mm, O_mm_struct__exe_file);
	found->image = mixed(image, inode_of(file));
	READ(at, mm, O_mm_struct__exec_vm); /* how much is mapped executable */
	found->space = mixed(found->image, at);
}
