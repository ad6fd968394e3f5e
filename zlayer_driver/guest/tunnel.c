/* The overlay's WireGuard interface, by netlink: rtnetlink(7) makes it, its generic netlink family (linux/wireguard.h) sets it up. */
#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/rtnetlink.h>
#include <linux/wireguard.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char TUNNEL[] = "overlay0";

struct message {
	struct nlmsghdr head;
	char body[1024]; /* all that is put there is of a fixed size, and fits */
};

static void *put(struct message *m, const void *data, size_t length)
{
	char *at = (char *)m + m->head.nlmsg_len;
	memcpy(at, data, length);
	m->head.nlmsg_len += NLMSG_ALIGN((uint32_t)length);
	return at;
}

static struct rtattr *attribute(struct message *m, unsigned short type, const void *data, size_t length)
{
	struct rtattr head = { (unsigned short)RTA_LENGTH(length), type };
	struct rtattr *made = put(m, &head, sizeof head);
	if (length)
		put(m, data, length);
	return made;
}

static struct rtattr *nest(struct message *m, unsigned short type)
{
	return attribute(m, type | NLA_F_NESTED, NULL, 0);
}

static void end_nest(struct message *m, struct rtattr *nest)
{
	nest->rta_len = (unsigned short)((char *)m + m->head.nlmsg_len - (char *)nest);
}

/* Sends `m`, and puts the kernel's answer in its place: 0, or -1 with what it was refused for. */
static int ask(int protocol, struct message *m)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (fd < 0)
		return -1;
	ssize_t got = send(fd, m, m->head.nlmsg_len, 0) < 0 ? -1 : recv(fd, m, sizeof *m, 0);
	close(fd);
	if (got < (ssize_t)sizeof m->head)
		return -1;
	if (m->head.nlmsg_type != NLMSG_ERROR)
		return 0;
	errno = -((struct nlmsgerr *)m->body)->error;
	return errno ? -1 : 0;
}

static struct message generic(unsigned short family, unsigned char command, unsigned short flags)
{
	struct message m = { .head = { NLMSG_HDRLEN, family, NLM_F_REQUEST | flags, 1, 0 } };
	put(&m, &(struct genlmsghdr){ .cmd = command, .version = 1 }, GENL_HDRLEN);
	return m;
}

static int wireguard_family(void)
{
	struct message m = generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0);
	attribute(&m, CTRL_ATTR_FAMILY_NAME, WG_GENL_NAME, sizeof WG_GENL_NAME);
	if (ask(NETLINK_GENERIC, &m))
		return -1;
	int left = (int)m.head.nlmsg_len - NLMSG_HDRLEN - GENL_HDRLEN;
	for (struct rtattr *at = (struct rtattr *)(m.body + GENL_HDRLEN); RTA_OK(at, left); at = RTA_NEXT(at, left))
		if (at->rta_type == CTRL_ATTR_FAMILY_ID)
			return *(unsigned short *)RTA_DATA(at);
	return errno = ENOENT, -1;
}

static int make_interface(void)
{
	struct message m = { .head = { NLMSG_HDRLEN, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1, 0 } };
	put(&m, &(struct ifinfomsg){ 0 }, sizeof(struct ifinfomsg));
	attribute(&m, IFLA_IFNAME, TUNNEL, sizeof TUNNEL);
	struct rtattr *info = nest(&m, IFLA_LINKINFO);
	attribute(&m, IFLA_INFO_KIND, WG_GENL_NAME, sizeof WG_GENL_NAME);
	end_nest(&m, info);
	return ask(NETLINK_ROUTE, &m) && errno != EEXIST ? -1 : 0;
}

/* 64 hexadecimal digits. */
static int parse_key(const char *text, unsigned char key[WG_KEY_LEN])
{
	for (int i = 0; i < WG_KEY_LEN; i++)
		if (sscanf(text + 2 * i, "%2hhx", &key[i]) != 1)
			return errno = EINVAL, -1;
	return 0;
}

/* `text` is its private key, or nothing: the key it has. Its peers are no more. */
struct fail make_tunnel(const char *text)
{
	unsigned char key[WG_KEY_LEN];
	uint32_t flags = WGDEVICE_F_REPLACE_PEERS;
	struct fail failed = load_modules("wireguard");
	if (failed.what)
		return failed;
	int family = make_interface() ? -1 : wireguard_family();
	if (family < 0 || (*text && parse_key(text, key)))
		return FAIL("make the tunnel");
	struct message m = generic((unsigned short)family, WG_CMD_SET_DEVICE, NLM_F_ACK);
	attribute(&m, WGDEVICE_A_IFNAME, TUNNEL, sizeof TUNNEL);
	attribute(&m, WGDEVICE_A_FLAGS, &flags, sizeof flags);
	if (*text)
		attribute(&m, WGDEVICE_A_PRIVATE_KEY, key, sizeof key);
	return ask(NETLINK_GENERIC, &m) ? FAIL("set the tunnel up") : OK;
}

/* Whichever of the two families `text` is an address of; 0 if it is of none. */
static int parse_address(const char *text, unsigned char address[16])
{
	return inet_pton(AF_INET, text, address) == 1 ? AF_INET : inet_pton(AF_INET6, text, address) == 1 ? AF_INET6 : 0;
}

static size_t address_size(int family)
{
	return family == AF_INET ? 4 : 16;
}

static void put_endpoint(struct message *m, int family, const unsigned char address[16], unsigned short port)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	memcpy(&v4.sin_addr, address, sizeof v4.sin_addr);
	memcpy(&v6.sin6_addr, address, sizeof v6.sin6_addr);
	if (family == AF_INET)
		attribute(m, WGPEER_A_ENDPOINT, &v4, sizeof v4);
	else
		attribute(m, WGPEER_A_ENDPOINT, &v6, sizeof v6);
}

/* `text` is "network prefix", as often as there is room for; 0 if all of it was put. */
static int put_networks(struct message *m, const char *text)
{
	unsigned char network[16], prefix;
	char address[64];
	int length;
	for (int left = 4; left && sscanf(text, "%63s %hhu%n", address, &prefix, &length) == 2; left--, text += length) {
		uint16_t family = (uint16_t)parse_address(address, network);
		struct rtattr *one = nest(m, 0);
		attribute(m, WGALLOWEDIP_A_FAMILY, &family, sizeof family);
		attribute(m, WGALLOWEDIP_A_IPADDR, network, address_size(family));
		attribute(m, WGALLOWEDIP_A_CIDR_MASK, &prefix, sizeof prefix);
		end_nest(m, one);
		if (!family)
			break;
	}
	return *text ? -1 : 0;
}

/* `text` is "key endpoint port keepalive networks", the key in hexadecimal, the keepalive in seconds. */
int add_peer(const char *text)
{
	unsigned char key[WG_KEY_LEN], endpoint[16];
	unsigned short port, keepalive;
	char digits[65], at[64];
	int length;
	if (sscanf(text, "%64s %63s %hu %hu%n", digits, at, &port, &keepalive, &length) != 4 || parse_key(digits, key))
		return errno = EINVAL, -1;
	int outer = parse_address(at, endpoint), family = wireguard_family();
	if (!outer || family < 0)
		return errno = EINVAL, -1;
	struct message m = generic((unsigned short)family, WG_CMD_SET_DEVICE, NLM_F_ACK);
	attribute(&m, WGDEVICE_A_IFNAME, TUNNEL, sizeof TUNNEL);
	struct rtattr *peers = nest(&m, WGDEVICE_A_PEERS), *peer = nest(&m, 0);
	attribute(&m, WGPEER_A_PUBLIC_KEY, key, sizeof key);
	put_endpoint(&m, outer, endpoint, port);
	attribute(&m, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &keepalive, sizeof keepalive);
	struct rtattr *allowed = nest(&m, WGPEER_A_ALLOWEDIPS);
	if (put_networks(&m, text + length))
		return errno = EINVAL, -1;
	end_nest(&m, allowed);
	end_nest(&m, peer);
	end_nest(&m, peers);
	return ask(NETLINK_GENERIC, &m);
}
