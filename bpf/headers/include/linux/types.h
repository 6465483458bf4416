/*
 * The integer types, and forward declarations of the enums that tracepoint
 * formats name. No kernel struct is declared anywhere in this tree: offsets
 * come from the running kernel's BTF (probes/engine/btf.py).
 */
#ifndef TCPTRACE_LINUX_TYPES_H
#define TCPTRACE_LINUX_TYPES_H

typedef unsigned char u8, __u8, uint8_t;
typedef signed char s8, __s8, int8_t;
typedef unsigned short u16, __u16, uint16_t, __be16, __le16, __sum16;
typedef short s16, __s16, int16_t;
typedef unsigned int u32, __u32, uint32_t, __be32, __le32, __wsum;
typedef int s32, __s32, int32_t;
typedef unsigned long long u64, __u64, uint64_t, __be64, __le64;
typedef long long s64, __s64, int64_t;
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
typedef unsigned long size_t, uintptr_t;
typedef long ssize_t;
typedef int pid_t;
typedef _Bool bool;
typedef unsigned short umode_t;
typedef unsigned int gfp_t;
typedef u32 dev_t;
typedef long long loff_t;

enum { false, true };

#define NULL ((void *)0)
#define __always_inline inline __attribute__((always_inline))

/* Named by the formats of tcp_send_reset (6.10) and kfree_skb (5.17). */
enum sk_rst_reason { SK_RST_REASON_FORWARD_DECLARATION };
enum skb_drop_reason { SKB_DROP_REASON_FORWARD_DECLARATION };

#endif
