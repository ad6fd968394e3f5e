/* Interfaces, their addresses and routes. */
#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void set_address(struct sockaddr *at, struct in_addr address)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = address };
	memcpy(at, &in, sizeof in);
}

static int control(int family, unsigned long request, void *argument)
{
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	int failed = ioctl(fd, request, argument);
	close(fd);
	return failed;
}

static int set_up(const char *name)
{
	struct ifreq request = { 0 };
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (control(AF_INET, SIOCGIFFLAGS, &request))
		return -1;
	request.ifr_flags |= IFF_UP;
	return control(AF_INET, SIOCSIFFLAGS, &request);
}

static struct in_addr mask_of(unsigned prefix)
{
	return (struct in_addr){ prefix ? htonl(~0U << (32 - prefix)) : 0 };
}

int loopback_up(void)
{
	return set_up("lo");
}

/* An IPv6 address more for an interface that is up; one that it has is fine. */
static int set_address6(const char *name, const char *address, unsigned prefix)
{
	struct in6_ifreq request = { .ifr6_prefixlen = prefix, .ifr6_ifindex = (int)if_nametoindex(name) };
	if (inet_pton(AF_INET6, address, &request.ifr6_addr) != 1)
		return errno = EINVAL, -1;
	return control(AF_INET6, SIOCSIFADDR, &request) && errno != EEXIST ? -1 : 0;
}

static int add_route6(const char *name, const char *target, unsigned prefix, const char *gateway)
{
	struct in6_rtmsg route = { .rtmsg_flags = RTF_UP, .rtmsg_metric = 1, .rtmsg_dst_len = (unsigned short)prefix };
	route.rtmsg_ifindex = (int)if_nametoindex(name);
	if (inet_pton(AF_INET6, target, &route.rtmsg_dst) != 1)
		return errno = EINVAL, -1;
	if (inet_pton(AF_INET6, gateway, &route.rtmsg_gateway) == 1)
		route.rtmsg_flags |= RTF_GATEWAY;
	return control(AF_INET6, SIOCADDRT, &route) && errno != EEXIST ? -1 : 0;
}

/* `text` is "interface address prefix mtu". An IPv6 address comes after the IPv4 one, which brings the interface up with its MTU. */
int set_network(const char *text)
{
	struct ifreq request = { 0 };
	char address[64];
	unsigned prefix, mtu;
	struct in_addr parsed;
	if (sscanf(text, "%15s %63s %u %u", request.ifr_name, address, &prefix, &mtu) != 4)
		return errno = EINVAL, -1;
	if (strchr(address, ':'))
		return set_address6(request.ifr_name, address, prefix);
	if (prefix > 32 || !inet_aton(address, &parsed))
		return errno = EINVAL, -1;
	set_address(&request.ifr_addr, parsed);
	if (control(AF_INET, SIOCSIFADDR, &request))
		return -1;
	set_address(&request.ifr_netmask, mask_of(prefix));
	if (control(AF_INET, SIOCSIFNETMASK, &request))
		return -1;
	request.ifr_mtu = (int)mtu;
	return control(AF_INET, SIOCSIFMTU, &request) || set_up(request.ifr_name) ? -1 : 0;
}

/* `text` is "interface target prefix gateway", the gateway "-" for a route on the link. One that is there already is fine. */
int add_route(const char *text)
{
	char target[64], gateway[64], device[IFNAMSIZ];
	unsigned prefix;
	struct in_addr to, via;
	if (sscanf(text, "%15s %63s %u %63s", device, target, &prefix, gateway) != 4)
		return errno = EINVAL, -1;
	if (strchr(target, ':'))
		return add_route6(device, target, prefix, gateway);
	if (prefix > 32 || !inet_aton(target, &to))
		return errno = EINVAL, -1;
	struct rtentry route = { .rt_flags = RTF_UP, .rt_dev = device };
	set_address(&route.rt_dst, to);
	set_address(&route.rt_genmask, mask_of(prefix));
	if (inet_aton(gateway, &via)) {
		route.rt_flags |= RTF_GATEWAY;
		set_address(&route.rt_gateway, via);
	}
	return control(AF_INET, SIOCADDRT, &route) && errno != EEXIST ? -1 : 0;
}
