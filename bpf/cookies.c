/*
 * The kernel numbers a socket only when somebody asks. These two programs ask,
 * at birth, so that the stream's cookie is the one that `ss -e` prints. They
 * decide nothing: 1 is "go on", and the reply is left untouched.
 */

int number_new_socket(struct bpf_sock *sk)
{
	bpf_get_socket_cookie(sk);
	return 1;
}

int number_new_child(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_get_socket_cookie(ops);
	return 1;
}
