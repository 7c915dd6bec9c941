// Preloaded before torch: OpenMP's parallel regions as plain threads, so that ThreadSanitizer sees where they begin and
// end. It serves what at::parallel_for asks of the run-time library; other constructs go on to the real one, whose teams
// have one thread then.
#include <pthread.h>
#include <stdlib.h>

typedef void (*Function)(void*);

typedef struct {
  Function function;
  void* data;
  int id, count;
} Member;

static _Thread_local Member self = {NULL, NULL, 0, 1};
static int wanted = 1;

static void* run(void* p) {
  self = *(Member*)p;
  self.function(self.data);
  return NULL;
}

void GOMP_parallel(Function function, void* data, unsigned threads, unsigned flags) {
  (void)flags;
  const int count = self.count > 1 ? 1 : threads ? (int)threads : wanted;
  const Member outer = self;
  pthread_t* handles = malloc(sizeof(pthread_t) * count);
  Member* members = malloc(sizeof(Member) * count);
  for (int i = 0; i < count; ++i) {
    members[i] = (Member){function, data, i, count};
    if (i > 0 && pthread_create(&handles[i], NULL, run, &members[i])) abort();
  }
  self = members[0];
  function(data);
  self = outer;
  for (int i = 1; i < count; ++i) pthread_join(handles[i], NULL);
  free(members);
  free(handles);
}

int omp_get_thread_num(void) { return self.id; }
int omp_get_num_threads(void) { return self.count; }
int omp_in_parallel(void) { return self.count > 1; }
int omp_get_max_threads(void) { return wanted; }
void omp_set_num_threads(int count) { wanted = count > 0 ? count : 1; }
