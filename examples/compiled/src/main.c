// Answers every request with a greeting, one connection after the other, until it is asked to stop.
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const char body[] = "hello from release-1\n";

static void stop(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8000)};
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) {
        perror("cannot listen");
        return 1;
    }
    printf("listening on %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        // Whoever connects and says nothing must not keep others waiting.
        struct timeval patience = {.tv_sec = 1};
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        char request[8192];
        ssize_t size = 0, n;
        while (size < (ssize_t)sizeof request - 1 &&
               (n = read(connection, request + size, sizeof request - 1 - size)) > 0) {
            size += n;
            request[size] = 0;
            if (strstr(request, "\r\n\r\n"))
                break;
        }
        if (size > 0)
            dprintf(connection, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                    sizeof body - 1, body);
        close(connection);
    }
}
