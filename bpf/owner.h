/*
 * Whose socket is it now? The recorded owner is believed only while its
 * descriptor table still holds the socket's file; else the heirs are asked.
 */

#define CHILDREN_SEARCHED 32

/* dup()ed and the first descriptor closed: same process, another number. */
static __always_inline bool holds_under_other_fd(struct owner *who, u64 file)
{
	s32 fd = fd_of_file(who->task, file);
	if (fd < 0)
		return false;
	who->fd = fd;
	return true;
}

static __always_inline bool still_holds(struct owner *who, u64 file)
{
	return still_the_same(who) &&
	       (file_at(who->task, who->fd) == file || holds_under_other_fd(who, file));
}

/*
 * Inherited over fork and closed by the parent: a child holds it under the same
 * number. The newest children stand at the end of the list. Another CPU may
 * change the list meanwhile; a match is still proof, as it compares the file.
 */
static __always_inline bool held_by_child(struct owner *who, u64 file)
{
	u64 head = who->task + O_task_struct__children, node = 0;

	READ(node, head, 8); /* list_head.prev */
	LOOP (u32 i = 0; i < CHILDREN_SEARCHED; i++) {
		u64 child = node - O_task_struct__sibling;

		if (!node || node == head)
			break;
		if (file_at(child, who->fd) == file) {
			s32 fd = who->fd;

			identify(who, child, HOW_FORK);
			who->fd = fd;
			return true;
		}
		READ(node, node, 8);
	}
	return false;
}

static __always_inline bool is_tracer(void)
{
	u64 self = setting(SETTING_SELF), parent = 0;
	u32 parent_pid = 0;

	READ(parent, current_leader(), O_task_struct__real_parent);
	READ(parent_pid, parent, O_task_struct__tgid);
	return self && (self == current_tgid() || self == parent_pid);
}

/*
 * The closer of the last reference. Only for a transition that close() itself
 * makes; a kernel worker that drops the last reference owns nothing.
 */
static __always_inline bool is_last_closer(struct owner *who)
{
	u32 pid = current_tgid();

	if (pid == who->pid)
		return true;
	if (current_flags() & PF_KTHREAD)
		return false;
	if (is_tracer()) /* our own look through /proc held it a moment longer */
		return false;
	identify_current(who, HOW_CLOSE);
	return true;
}

/* Is who the owner, or can its heir be named? */
static __always_inline bool settle_owner(struct owner *who, u64 file, u32 facts)
{
	if (!file)
		return false;
	if (facts & FACT_FILE_CLOSING)
		return (facts & FACT_LOCKED_BY_CURRENT) && is_last_closer(who);
	return still_holds(who, file) || (still_the_same(who) && held_by_child(who, file));
}
