/* The guest's network interfaces; text of a field each, `errno` says why not. */
#ifndef ZLAYER_NETWORK_H
#define ZLAYER_NETWORK_H

#include "agent.h"

int loopback_up(void);
int set_network(const char *text);
int add_route(const char *text);
struct fail make_tunnel(const char *text);
int add_peer(const char *text);

#endif
