#include <uapi/linux/bpf.h>
