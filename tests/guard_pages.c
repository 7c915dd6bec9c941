// Preloaded into a process, gives memory whose neighbours cannot be touched: while guard_mode is not 0, every block from
// malloc (of at least 256 bytes), realloc and posix_memalign stands alone on pages of its own, between pages without
// access, and never comes back: a byte read or written outside it, or after free, ends the process.
//   guard_mode 1   the last byte is the last of its page (for malloc, up to the alignment of 16)
//   guard_mode 2   the first byte is the first of its page
// Fresh memory is filled with guard_fill: bytes 0xff are NaN in every floating type.
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void* __libc_malloc(size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

int guard_mode = 0;
int guard_fill = 0xff;

enum { kPage = 4096 };
static const size_t kRegion = (size_t)1 << 38;

static char* region;
static size_t* sizes;  // of the block that starts in a page
static atomic_size_t used;

static void* pages(size_t bytes) {
  void* p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

__attribute__((constructor)) static void reserve(void) {
  region = pages(kRegion);
  sizes = pages(kRegion / kPage * sizeof(size_t));
  if (sizes) mprotect(sizes, kRegion / kPage * sizeof(size_t), PROT_READ | PROT_WRITE);
}

static int is_ours(const void* p) { return region && (char*)p >= region && (char*)p < region + kRegion; }

static void* allocate(size_t size, size_t alignment) {
  const size_t bytes = (size + kPage - 1) / kPage * kPage, reserved = bytes + kPage;
  const size_t at = atomic_fetch_add(&used, reserved);
  char* first = region + at + kPage;
  if (!region || at + reserved + kPage > kRegion || mprotect(first, bytes, PROT_READ | PROT_WRITE)) return NULL;
  memset(first, guard_fill, bytes);
  sizes[(first - region) / kPage] = size;
  return guard_mode == 1 ? first + (bytes - size) / alignment * alignment : first;
}

static size_t size_of(const void* p) { return sizes[((char*)p - region) / kPage]; }

void free(void* p) {
  if (!is_ours(p)) {
    __libc_free(p);
    return;
  }
  char* first = region + ((char*)p - region) / kPage * kPage;
  const size_t bytes = (size_of(p) + kPage - 1) / kPage * kPage;
  mmap(first, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void* malloc(size_t size) {
  void* p = guard_mode && size >= 256 ? allocate(size, 16) : NULL;
  return p ? p : __libc_malloc(size);
}

void* realloc(void* old, size_t size) {
  if (!is_ours(old) && (!guard_mode || old)) return __libc_realloc(old, size);
  void* p = malloc(size);
  if (p && old) {
    memcpy(p, old, size_of(old) < size ? size_of(old) : size);
    free(old);
  }
  return p;
}

// The alignment that is asked for gives way to the exact end.
int posix_memalign(void** result, size_t alignment, size_t size) {
  *result = guard_mode && size > 0 ? allocate(size, 1) : NULL;
  if (!*result) *result = __libc_memalign(alignment, size);
  return *result ? 0 : ENOMEM;
}
