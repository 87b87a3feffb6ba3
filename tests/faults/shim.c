// A file system that fails or a process that dies at a chosen moment: preloaded into a program, this
// library stands between it and the C library's calls on files. Calls on paths under one folder are
// counted; at a chosen one it returns an error, writes half of the bytes, or kills the process.
// Linux with glibc. The program under test knows nothing of it.
//
//   FAULTS_UNDER   the folder, an absolute path without symbolic links
//   FAULTS_OPS     the operations that count, separated by commas; unset: all that change something
//                  create open write copy truncate sync rename link mkdir remove read lock
//   FAULTS_PATH    only paths that match this pattern count, as in fnmatch(3); `*` crosses slashes
//   FAULTS_AT      at which of them, from 1; unset: nowhere
//   FAULTS_STICKY  if set, at all later ones too, as on a disk that stays full
//   FAULTS_DO      what then: an error (ENOSPC EIO EACCES), `short` (half of the bytes are written, then
//                  ENOSPC), kill-before, kill-middle (half of the bytes), kill-after
//   FAULTS_TRACE   a file that gets one line for each operation that is done, separated by tabs: its
//                  number or - if it does not count, its name, what became of it, what it returned, its
//                  path, and where a rename or a link leads
//
// close is traced and never counts.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#endif

enum action { PASS, FAIL, SHORT, KILL_BEFORE, KILL_MIDDLE, KILL_AFTER };

static const char CHANGES[] = "create,write,copy,truncate,sync,rename,link,mkdir,remove";

static struct {
  const char *under;
  const char *ops;
  const char *pattern;
  unsigned long at;
  bool sticky;
  enum action action;
  int error;
  int trace;
} plan = {.trace = -1};

static atomic_ulong counted;
// The descriptor whose last write was short; its next one fails. 0: none.
static atomic_int starved;

// The C library's own function of that name, looked up once.
#define REAL(name)                                                                                \
  ({                                                                                              \
    static __typeof__(&name) found;                                                               \
    if (found == NULL) {                                                                          \
      *(void **)&found = dlsym(RTLD_NEXT, #name);                                                 \
    }                                                                                             \
    found;                                                                                        \
  })

__attribute__((constructor)) static void read_plan(void) {
  static const struct {
    const char *name;
    enum action action;
    int error;
  } actions[] = {
      {"ENOSPC", FAIL, ENOSPC},     {"EIO", FAIL, EIO},
      {"EACCES", FAIL, EACCES},     {"short", SHORT, ENOSPC},
      {"kill-before", KILL_BEFORE, 0}, {"kill-middle", KILL_MIDDLE, 0},
      {"kill-after", KILL_AFTER, 0},
  };
  const char *under = getenv("FAULTS_UNDER");
  const char *at = getenv("FAULTS_AT");
  const char *what = getenv("FAULTS_DO");
  const char *trace = getenv("FAULTS_TRACE");
  plan.ops = getenv("FAULTS_OPS");
  if (plan.ops == NULL) {
    plan.ops = CHANGES;
  }
  plan.pattern = getenv("FAULTS_PATH");
  plan.sticky = getenv("FAULTS_STICKY") != NULL;
  plan.at = at == NULL ? 0 : strtoul(at, NULL, 10);
  for (size_t i = 0; what != NULL && i < sizeof actions / sizeof *actions; i++) {
    if (strcmp(what, actions[i].name) == 0) {
      plan.action = actions[i].action;
      plan.error = actions[i].error;
    }
  }
  if (plan.at > 0 && plan.action == PASS) {
    static const char message[] = "faults: FAULTS_DO names no known fault\n";
    (void)!REAL(write)(2, message, sizeof message - 1);
    _exit(99);
  }
  if (trace != NULL) {
    plan.trace = REAL(open)(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  }
  plan.under = under;
}

static bool listed(const char *op) {
  size_t length = strlen(op);
  for (const char *at = plan.ops; (at = strstr(at, op)) != NULL; at += length) {
    bool begins = at == plan.ops || at[-1] == ',';
    if (begins && (at[length] == ',' || at[length] == '\0')) {
      return true;
    }
  }
  return false;
}

static bool is_under(const char *path) {
  size_t length = strlen(plan.under);
  return strncmp(path, plan.under, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static bool path_of(int fd, char *to) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, to, PATH_MAX - 1);
  to[length < 0 ? 0 : length] = '\0';
  return length > 0;
}

static bool path_at(int folder, const char *path, char *to) {
  char base[PATH_MAX];
  if (path == NULL) {
    return false;
  }
  if (path[0] == '/') {
    return snprintf(to, PATH_MAX, "%s", path) < PATH_MAX;
  }
  if (folder == AT_FDCWD ? getcwd(base, sizeof base) == NULL : !path_of(folder, base)) {
    return false;
  }
  return snprintf(to, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

// One call on a file: what is to become of it and what is written about it.
struct call {
  bool watched;
  unsigned long number; // 0: does not count
  const char *op;
  enum action action;
  char path[PATH_MAX];
  char other[PATH_MAX];
};

static void write_trace(const struct call *call, const char *result, ssize_t value) {
  char line[2 * PATH_MAX + 128];
  char number[32] = "-";
  if (plan.trace < 0) {
    return;
  }
  if (call->number > 0) {
    snprintf(number, sizeof number, "%lu", call->number);
  }
  int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%zd\t%s\t%s\n", number, call->op,
                        result, value, call->path, call->other);
  if (length > 0 && (size_t)length < sizeof line) {
    (void)!REAL(write)(plan.trace, line, length);
  }
}

static void die(const struct call *call, const char *when, ssize_t value) {
  write_trace(call, when, value);
  kill(getpid(), SIGKILL);
  for (;;) {
    pause();
  }
}

// Counts a call whose paths are already in `call`. True: it is to fail, and errno says how.
static bool arrive(struct call *call, const char *op) {
  call->op = op;
  call->action = PASS;
  call->number = 0;
  call->watched = plan.under != NULL && (is_under(call->path) || is_under(call->other));
  if (!call->watched) {
    return false;
  }
  bool matches = plan.pattern == NULL || fnmatch(plan.pattern, call->path, 0) == 0 ||
                 fnmatch(plan.pattern, call->other, 0) == 0;
  if (!matches || !listed(op)) {
    return false;
  }
  call->number = atomic_fetch_add(&counted, 1) + 1;
  if (call->number == plan.at || (plan.sticky && plan.at > 0 && call->number > plan.at)) {
    call->action = plan.action;
  }
  if (call->action == KILL_BEFORE) {
    die(call, "killed before", -1);
  }
  if (call->action == FAIL) {
    write_trace(call, "injected", -1);
    errno = plan.error;
    return true;
  }
  return false;
}

// A call that is done; -1: it failed.
static void leave(struct call *call, ssize_t result) {
  int error = errno;
  if (call->watched) {
    if (call->action == KILL_MIDDLE || call->action == KILL_AFTER) {
      die(call, "killed after", result);
    }
    write_trace(call, result >= 0 ? "ok" : strerrorname_np(error), result);
  }
  errno = error;
}

// As `arrive`, for a call that moves `*size` bytes to `fd`: they are halved if only half is to be
// moved.
static bool arrive_write(struct call *call, const char *op, int fd, size_t *size) {
  call->other[0] = '\0';
  if (plan.under == NULL || !path_of(fd, call->path)) {
    call->path[0] = '\0';
  }
  if (arrive(call, op)) {
    return true;
  }
  if (call->watched && fd == atomic_load(&starved)) {
    atomic_store(&starved, 0);
    write_trace(call, "injected", -1);
    errno = ENOSPC;
    return true;
  }
  if (call->action == SHORT) {
    if (*size < 2 || (plan.sticky && call->number > plan.at)) {
      write_trace(call, "injected", -1);
      errno = ENOSPC;
      return true;
    }
    atomic_store(&starved, fd);
  }
  if (call->action == SHORT || call->action == KILL_MIDDLE) {
    *size /= 2;
  }
  return false;
}

static bool arrive_fd(struct call *call, const char *op, int fd) {
  call->other[0] = '\0';
  if (plan.under == NULL || !path_of(fd, call->path)) {
    call->path[0] = '\0';
  }
  return arrive(call, op);
}

static bool arrive_path(struct call *call, const char *op, int folder, const char *path) {
  call->other[0] = '\0';
  if (plan.under == NULL || !path_at(folder, path, call->path)) {
    call->path[0] = '\0';
  }
  return arrive(call, op);
}

static bool arrive_paths(struct call *call, const char *op, int from_folder, const char *from,
                         int to_folder, const char *to) {
  call->path[0] = call->other[0] = '\0';
  if (plan.under != NULL && !(path_at(from_folder, from, call->path) &&
                              path_at(to_folder, to, call->other))) {
    call->path[0] = call->other[0] = '\0';
  }
  return arrive(call, op);
}

// `expression` is the call itself; -1 from it is a failure.
#define FINISH(type, expression)                                                                  \
  do {                                                                                            \
    type result = (expression);                                                                   \
    leave(&call, result);                                                                    \
    return result;                                                                                \
  } while (0)

// Opening

static const char *open_kind(int flags) {
  return (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) != 0 ? "create" : "open";
}

#define MODE_OF(flags, last)                                                                      \
  mode_t mode = 0;                                                                                \
  if (((flags)&O_CREAT) != 0 || ((flags)&O_TMPFILE) == O_TMPFILE) {                               \
    va_list rest;                                                                                 \
    va_start(rest, last);                                                                         \
    mode = va_arg(rest, mode_t);                                                                  \
    va_end(rest);                                                                                 \
  }

#define OPEN(name)                                                                                \
  EXPORT int name(const char *path, int flags, ...) {                                             \
    struct call call;                                                                             \
    MODE_OF(flags, flags)                                                                         \
    if (arrive_path(&call, open_kind(flags), AT_FDCWD, path)) {                                   \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name)(path, flags, mode));                                                   \
  }

#define OPENAT(name)                                                                              \
  EXPORT int name(int folder, const char *path, int flags, ...) {                                 \
    struct call call;                                                                             \
    MODE_OF(flags, flags)                                                                         \
    if (arrive_path(&call, open_kind(flags), folder, path)) {                                     \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name)(folder, path, flags, mode));                                           \
  }

#define CREAT(name)                                                                               \
  EXPORT int name(const char *path, mode_t mode) {                                                \
    struct call call;                                                                             \
    if (arrive_path(&call, "create", AT_FDCWD, path)) {                                           \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name)(path, mode));                                                          \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
CREAT(creat)
CREAT(creat64)

EXPORT int close(int fd) {
  struct call call = {.op = "close"};
  call.watched = plan.trace >= 0 && plan.under != NULL && path_of(fd, call.path) &&
                 is_under(call.path);
  FINISH(int, REAL(close)(fd));
}

// Reading

EXPORT ssize_t read(int fd, void *to, size_t size) {
  struct call call;
  if (arrive_fd(&call, "read", fd)) {
    return -1;
  }
  FINISH(ssize_t, REAL(read)(fd, to, size));
}

#define PREAD(name, offset_type)                                                                  \
  EXPORT ssize_t name(int fd, void *to, size_t size, offset_type offset) {                        \
    struct call call;                                                                             \
    if (arrive_fd(&call, "read", fd)) {                                                           \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(ssize_t, REAL(name)(fd, to, size, offset));                                            \
  }

PREAD(pread, off_t)
PREAD(pread64, off64_t)

// Writing

EXPORT ssize_t write(int fd, const void *from, size_t size) {
  struct call call;
  if (arrive_write(&call, "write", fd, &size)) {
    return -1;
  }
  FINISH(ssize_t, REAL(write)(fd, from, size));
}

#define PWRITE(name, offset_type)                                                                 \
  EXPORT ssize_t name(int fd, const void *from, size_t size, offset_type offset) {                \
    struct call call;                                                                             \
    if (arrive_write(&call, "write", fd, &size)) {                                                \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(ssize_t, REAL(name)(fd, from, size, offset));                                          \
  }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
  struct call call;
  size_t whole = 0;
  for (int i = 0; i < count; i++) {
    whole += parts[i].iov_len;
  }
  size_t size = whole;
  if (arrive_write(&call, "write", fd, &size)) {
    return -1;
  }
  if (size == whole) {
    FINISH(ssize_t, REAL(writev)(fd, parts, count));
  }
  ssize_t done = 0;
  for (int i = 0; i < count && size > 0; i++) {
    size_t part = parts[i].iov_len < size ? parts[i].iov_len : size;
    ssize_t wrote = REAL(write)(fd, parts[i].iov_base, part);
    if (wrote < 0) {
      break;
    }
    done += wrote;
    size -= wrote;
  }
  FINISH(ssize_t, done);
}

EXPORT ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset,
                               size_t size, unsigned flags) {
  struct call call;
  if (arrive_write(&call, "copy", to, &size)) {
    return -1;
  }
  FINISH(ssize_t, REAL(copy_file_range)(from, from_offset, to, to_offset, size, flags));
}

#define SENDFILE(name, offset_type)                                                               \
  EXPORT ssize_t name(int to, int from, offset_type *offset, size_t size) {                       \
    struct call call;                                                                             \
    if (arrive_write(&call, "copy", to, &size)) {                                                 \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(ssize_t, REAL(name)(to, from, offset, size));                                          \
  }

SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define ON_FD(name, op, parameters, arguments)                                                    \
  EXPORT int name parameters {                                                                    \
    struct call call;                                                                             \
    if (arrive_fd(&call, op, fd)) {                                                               \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name) arguments);                                                            \
  }

ON_FD(ftruncate, "truncate", (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, "truncate", (int fd, off64_t size), (fd, size))
ON_FD(fallocate, "truncate", (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
ON_FD(fallocate64, "truncate", (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
ON_FD(fsync, "sync", (int fd), (fd))
ON_FD(fdatasync, "sync", (int fd), (fd))
ON_FD(syncfs, "sync", (int fd), (fd))
ON_FD(sync_file_range, "sync", (int fd, off64_t at, off64_t size, unsigned flags),
      (fd, at, size, flags))
ON_FD(flock, "lock", (int fd, int operation), (fd, operation))

// Names

#define ON_PATH(name, op, parameters, folder, path, arguments)                                    \
  EXPORT int name parameters {                                                                    \
    struct call call;                                                                             \
    if (arrive_path(&call, op, folder, path)) {                                                   \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name) arguments);                                                            \
  }

ON_PATH(truncate, "truncate", (const char *path, off_t size), AT_FDCWD, path, (path, size))
ON_PATH(truncate64, "truncate", (const char *path, off64_t size), AT_FDCWD, path, (path, size))
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(mkdirat, "mkdir", (int folder, const char *path, mode_t mode), folder, path,
        (folder, path, mode))
ON_PATH(unlink, "remove", (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlinkat, "remove", (int folder, const char *path, int flags), folder, path,
        (folder, path, flags))
ON_PATH(rmdir, "remove", (const char *path), AT_FDCWD, path, (path))

#define ON_PATHS(name, op, parameters, from_folder, to_folder, arguments)                         \
  EXPORT int name parameters {                                                                    \
    struct call call;                                                                             \
    if (arrive_paths(&call, op, from_folder, from, to_folder, to)) {                              \
      return -1;                                                                                  \
    }                                                                                             \
    FINISH(int, REAL(name) arguments);                                                            \
  }

ON_PATHS(rename, "rename", (const char *from, const char *to), AT_FDCWD, AT_FDCWD, (from, to))
ON_PATHS(renameat, "rename", (int old, const char *from, int new, const char *to), old, new,
         (old, from, new, to))
ON_PATHS(renameat2, "rename",
         (int old, const char *from, int new, const char *to, unsigned flags), old, new,
         (old, from, new, to, flags))
ON_PATHS(link, "link", (const char *from, const char *to), AT_FDCWD, AT_FDCWD, (from, to))
ON_PATHS(linkat, "link", (int old, const char *from, int new, const char *to, int flags), old, new,
         (old, from, new, to, flags))
ON_PATHS(symlink, "link", (const char *from, const char *to), AT_FDCWD, AT_FDCWD, (from, to))
