// What a program may do with files, on the folder that it is given: each step checked, "ok" at the end.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CHECK(condition)                                                                   \
	do {                                                                                   \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
			return 1;                                                                      \
		}                                                                                  \
	} while (0)

static int put(const char *name, const char *text)
{
	int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		return -1;
	return close(fd);
}

static int has(const char *name, const char *text)
{
	char buffer[64] = "";
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t count = read(fd, buffer, sizeof buffer - 1);
	close(fd);
	return count == (ssize_t)strlen(text) && strcmp(buffer, text) == 0;
}

static int renames(void)
{
	CHECK(put("a", "a") == 0 && put("b", "b") == 0);
	CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE) == -1 && errno == EEXIST);
	CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
	CHECK(has("a", "b") && has("b", "a"));
	CHECK(rename("a", "b") == 0 && has("b", "b") && access("a", F_OK) == -1);
	CHECK(mkdir("d", 0777) == 0 && rename("b", "d/b") == 0 && has("d/b", "b"));
	CHECK(rmdir("d") == -1 && errno == ENOTEMPTY);
	CHECK(link("d/b", "c") == 0);
	struct stat stat_b, stat_c;
	CHECK(stat("d/b", &stat_b) == 0 && stat("c", &stat_c) == 0);
	CHECK(stat_b.st_ino == stat_c.st_ino && stat_b.st_nlink == 2);
	CHECK(unlink("d/b") == 0 && rmdir("d") == 0 && has("c", "b") && unlink("c") == 0);
	return 0;
}

static int attributes(void)
{
	char buffer[256];
	CHECK(put("x", "x") == 0 && symlink("x", "s") == 0);
	// Not every file system of a host has them.
	if (setxattr("x", "user.one", "1", 1, XATTR_CREATE) == 0) {
		CHECK(setxattr("x", "user.one", "1", 1, XATTR_CREATE) == -1 && errno == EEXIST);
		CHECK(getxattr("x", "user.one", buffer, sizeof buffer) == 1 && buffer[0] == '1');
		CHECK(getxattr("x", "user.two", buffer, sizeof buffer) == -1 && errno == ENODATA);
		CHECK(listxattr("x", NULL, 0) >= 9 && listxattr("x", buffer, 2) == -1 && errno == ERANGE);
		CHECK(listxattr("x", buffer, sizeof buffer) >= 9 && removexattr("x", "user.one") == 0);
	} else {
		CHECK(errno == EOPNOTSUPP);
	}
	struct stat stat_s;
	struct statvfs statvfs_x;
	CHECK(lstat("s", &stat_s) == 0 && S_ISLNK(stat_s.st_mode) && stat_s.st_size == 1);
	CHECK(statvfs("x", &statvfs_x) == 0 && statvfs_x.f_blocks > 0 && statvfs_x.f_namemax == 255);
	struct timespec times[2] = {{1000000000, 123456789}, {-5, 0}};
	CHECK(utimensat(AT_FDCWD, "x", times, 0) == 0 && stat("x", &stat_s) == 0);
	CHECK(stat_s.st_atim.tv_sec == 1000000000 && stat_s.st_mtim.tv_sec == -5);
	CHECK(chmod("x", 06755) == 0 && stat("x", &stat_s) == 0 && (stat_s.st_mode & 07777) == 06755);
	CHECK(chown("x", 0, 0) == 0 && stat("x", &stat_s) == 0 && (stat_s.st_mode & 07777) == 0755);
	CHECK(umask(027) == 022 && mkdir("m", 0777) == 0 && stat("m", &stat_s) == 0);
	CHECK((stat_s.st_mode & 07777) == 0750 && umask(022) == 027);
	CHECK(rmdir("m") == 0 && unlink("s") == 0 && unlink("x") == 0);
	return 0;
}

static int contents(void)
{
	static char zeroes[4096], data[4096];
	memset(data, 'd', sizeof data);
	int fd = open("f", O_CREAT | O_RDWR | O_EXCL | O_CLOEXEC, 0400);
	CHECK(fd >= 0);
	// The mode forbids writing, but not through what is open.
	CHECK(ftruncate(fd, 1 << 20) == 0 && pwrite(fd, data, 4096, 512 << 10) == 4096);
	struct stat stat_f;
	CHECK(fsync(fd) == 0 && fstat(fd, &stat_f) == 0 && stat_f.st_size == 1 << 20);
	CHECK(stat_f.st_blocks * 512 < 1 << 20);
	CHECK(lseek(fd, 0, SEEK_DATA) == 512 << 10 && lseek(fd, 512 << 10, SEEK_HOLE) == (512 << 10) + 4096);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 512 << 10, 4096) == 0);
	CHECK(pread(fd, data, 4096, 512 << 10) == 4096 && memcmp(data, zeroes, 4096) == 0);
	CHECK(fallocate(fd, 0, 1 << 20, 4096) == 0 && fstat(fd, &stat_f) == 0 && stat_f.st_size == (1 << 20) + 4096);
	char *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	memcpy(map + 4090, "mapped", 6);
	CHECK(msync(map, 8192, MS_SYNC) == 0 && pread(fd, data, 6, 4090) == 6 && memcmp(data, "mapped", 6) == 0);
	CHECK(pwrite(fd, "MAPPED", 6, 4090) == 6 && memcmp(map + 4090, "MAPPED", 6) == 0 && munmap(map, 8192) == 0);
	int other = open("g", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	loff_t from = 4090, to = 0;
	CHECK(other >= 0 && copy_file_range(fd, &from, other, &to, 6, 0) == 6);
	CHECK(pread(other, data, 64, 0) == 6 && memcmp(data, "MAPPED", 6) == 0);
	int tail = open("g", O_WRONLY | O_APPEND | O_CLOEXEC);
	CHECK(tail >= 0 && write(tail, "1", 1) == 1 && pwrite(other, "22", 2, 7) == 2 && write(tail, "3", 1) == 1);
	CHECK(has("g", "MAPPED1223"));
	CHECK(flock(other, LOCK_EX | LOCK_NB) == 0 && flock(tail, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	struct flock lock = {.l_type = F_WRLCK};
	CHECK(fcntl(other, F_SETLK, &lock) == 0);
	// What is open stays when its name goes.
	CHECK(unlink("g") == 0 && pread(other, data, 64, 0) == 10 && fstat(other, &stat_f) == 0 && stat_f.st_nlink == 0);
	CHECK(close(tail) == 0 && close(other) == 0 && close(fd) == 0 && unlink("f") == 0);
	return 0;
}

static int unnamed(void)
{
	char path[64];
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	// An overlay of older kernels has none, and neither have drivers before Linux 6.2.
	if (fd < 0) {
		CHECK(errno == EOPNOTSUPP || errno == EISDIR);
		return 0;
	}
	CHECK(write(fd, "t", 1) == 1);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "t", AT_SYMLINK_FOLLOW) == 0 && has("t", "t"));
	CHECK(close(fd) == 0 && unlink("t") == 0);
	return 0;
}

static int odd_names(void)
{
	char longest[257];
	memset(longest, 'n', 256);
	longest[256] = 0;
	CHECK(put(longest, "x") == -1 && errno == ENAMETOOLONG);
	longest[255] = 0;
	CHECK(put(longest, "x") == 0 && unlink(longest) == 0);
	CHECK(put("\xff\xfe \n\"", "odd") == 0 && has("\xff\xfe \n\"", "odd"));
	return 0;
}

int main(int argc, char **argv)
{
	umask(022);
	CHECK(argc == 2 && chdir(argv[1]) == 0);
	if (renames() || attributes() || contents() || unnamed() || odd_names())
		return 1;
	puts("ok");
	return 0;
}
