#include <linux/types.h>

/* Only sizes perf buffers, which tcptrace does not use. */
#define PAGE_SIZE 4096
