/* The guest's side of the vsock cases; linked statically and run in the busybox root.
 *
 *   vsock echo PORT COUNT    accepts COUNT connections and sends back what comes, all at once
 *   vsock send PORT BYTES    connects to the host, sends a pattern and checks that it comes back
 *   vsock half PORT          connects, says "question", closes its half, prints what comes until the end
 *   vsock try CID PORT       prints how connecting went
 *   vsock churn PORT COUNT   connects and closes COUNT times
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static int open_socket(unsigned cid, unsigned port, int listening) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    check(fd >= 0, "socket");
    if (listening) {
        check(bind(fd, (struct sockaddr *)&address, sizeof address) == 0, "bind");
        check(listen(fd, 1024) == 0, "listen");
    } else if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static void write_all(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t count = write(fd, data, len);
        check(count > 0, "write");
        data += count;
        len -= count;
    }
}

static char buffer[1 << 16];

static void echo(unsigned port, int count) {
    int listener = open_socket(VMADDR_CID_ANY, port, 1);
    puts("listening");
    fflush(stdout);
    for (int n = 0; n < count; n++) {
        int fd = accept(listener, NULL, NULL);
        check(fd >= 0, "accept");
        if (fork() == 0) {
            ssize_t got;
            while ((got = read(fd, buffer, sizeof buffer)) > 0)
                write_all(fd, buffer, got);
            check(got == 0, "read");
            exit(0);
        }
        close(fd);
    }
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status != 0;
    exit(failed);
}

static char pattern(uint64_t at) { return (char)((at * 2654435761u) >> 13); }

static void send_and_check(unsigned port, uint64_t bytes) {
    int fd = open_socket(VMADDR_CID_HOST, port, 0);
    check(fd >= 0, "connect");
    if (fork() == 0) {
        for (uint64_t at = 0; at < bytes;) {
            size_t n = 0;
            while (n < sizeof buffer && at < bytes)
                buffer[n++] = pattern(at++);
            write_all(fd, buffer, n);
        }
        check(shutdown(fd, SHUT_WR) == 0, "shutdown");
        exit(0);
    }
    uint64_t at = 0;
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0)
        for (ssize_t n = 0; n < got; n++)
            if (buffer[n] != pattern(at++)) {
                fprintf(stderr, "byte %llu is wrong\n", (unsigned long long)at - 1);
                exit(1);
            }
    check(got == 0, "read");
    int status;
    wait(&status);
    if (at != bytes)
        fprintf(stderr, "%llu bytes came back\n", (unsigned long long)at);
    exit(at != bytes || status != 0);
}

static void half(unsigned port) {
    int fd = open_socket(VMADDR_CID_HOST, port, 0);
    check(fd >= 0, "connect");
    write_all(fd, "question", 8);
    check(shutdown(fd, SHUT_WR) == 0, "shutdown");
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0)
        write_all(1, buffer, got);
    check(got == 0, "read");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    unsigned first = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    uint64_t second = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (argc == 4 && !strcmp(argv[1], "echo"))
        echo(first, second);
    else if (argc == 4 && !strcmp(argv[1], "send"))
        send_and_check(first, second);
    else if (argc == 3 && !strcmp(argv[1], "half"))
        half(first);
    else if (argc == 4 && !strcmp(argv[1], "try"))
        puts(open_socket(first, second, 0) < 0 ? strerror(errno) : "connected");
    else if (argc == 4 && !strcmp(argv[1], "churn"))
        for (uint64_t n = 0; n < second; n++) {
            int fd = open_socket(VMADDR_CID_HOST, first, 0);
            check(fd >= 0, "connect");
            close(fd);
        }
    else
        return 2;
    return 0;
}
