/* BCC carries its own copy of the BPF interface; use that one. */
#include <linux/types.h>
#include "/virtual/include/bcc/bpf.h"
