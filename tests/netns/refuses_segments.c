/* sendmsg(2) on a device that cannot do UDP_SEGMENT: EIO for a run, the real call for everything else. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	struct sockaddr *to = message->msg_name;
	struct cmsghdr *c;

	/* Loopback can: what is probed at start is the kernel, not the device. */
	if (to && to->sa_family == AF_INET &&
	    (ntohl(((struct sockaddr_in *)to)->sin_addr.s_addr) >> 24) == 127)
		return syscall(SYS_sendmsg, fd, message, flags);
	for (c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR((struct msghdr *)message, c))
		if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_SEGMENT) {
			errno = EIO;
			return -1;
		}
	return syscall(SYS_sendmsg, fd, message, flags);
}
