/*
 * BCC only stores this number in the program's load attributes, where kernels
 * since 5.0 ignore it. Nothing in tcptrace may depend on a version number.
 */
#define LINUX_VERSION_CODE 0x050a00
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
