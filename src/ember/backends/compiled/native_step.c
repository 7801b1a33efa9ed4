/* One decoding step on the CPU: see native_step.py, which builds this file and calls it.
 *
 * T, the type of weights and cache, is float, or with -DBFLOAT16 the upper half of one. All
 * arithmetic is float. A row of the batch is computed by itself and in a fixed order: what else is
 * in the batch, and how many threads there are, does not change a bit of it.
 *
 * What architectures differ in (`Step` and `Layer` say it) is looked at row by row, not number by
 * number, so that a switch costs nothing.
 *
 * The threads stay in one parallel region for the whole step and meet some five times a layer. Who
 * waits looks for about 0.1 ms and then sleeps: where other processes want the cores too, a thread that is
 * not running gets the sleeper's. OpenMP's own barrier looks for some 17 ms.
 */
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#ifdef BFLOAT16
typedef uint16_t T;
#else
typedef float T;
#endif

enum {
  LANES = 16,    /* floats of a vector */
  ROWS = 4,      /* rows of a matrix at a time */
  MEMBERS = 4,   /* rows of the batch at a time */
  NEAR = 32,     /* tokens */
  AHEAD = 16384, /* bytes: the most that is requested early */
  LOOKS = 2000,  /* at what the others do, before a thread sleeps */
};
typedef float vec __attribute__((vector_size(4 * LANES)));

enum { RMS, RMS_OFFSET, LAYER };         /* norms; see NORMS of the architecture */
enum { SILU, GELU, GELU_TANH };          /* activations */

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline float get(const T *p) {
#ifdef BFLOAT16
  uint32_t bits = (uint32_t)*p << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#else
  return *p;
#endif
}

static inline T rounded(float value) {
#ifdef BFLOAT16
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40; /* NaN stays NaN */
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#else
  return value;
#endif
}

static inline vec get_vec(const T *p) {
#ifdef BFLOAT16
  typedef uint16_t half __attribute__((vector_size(2 * LANES)));
  typedef uint32_t word __attribute__((vector_size(4 * LANES)));
  half low;
  memcpy(&low, p, sizeof low);
  return (vec)(__builtin_convertvector(low, word) << 16);
#else
  vec value;
  memcpy(&value, p, sizeof value);
  return value;
#endif
}

static inline vec get_floats(const float *p) {
  vec value;
  memcpy(&value, p, sizeof value);
  return value;
}

typedef float quad __attribute__((vector_size(16)));
#ifdef __clang__
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t lanes __attribute__((vector_size(16)));
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (lanes){i, j, k, l})
#endif

static inline quad folded(vec v) {
  quad part[4];
  memcpy(part, &v, sizeof part);
  return (part[0] + part[2]) + (part[1] + part[3]);
}

/* The sums of four vectors; each is added up in the same order, wherever it stands. */
static inline quad totals(vec a, vec b, vec c, vec d) {
  quad e = folded(a), f = folded(b), g = folded(c), h = folded(d);
  quad ef = MIX(e, f, 0, 4, 1, 5) + MIX(e, f, 2, 6, 3, 7);
  quad gh = MIX(g, h, 0, 4, 1, 5) + MIX(g, h, 2, 6, 3, 7);
  return MIX(ef, gh, 0, 1, 4, 5) + MIX(ef, gh, 2, 3, 6, 7);
}

/* exp to about 2 units in the last place; NaN stays NaN, below -87 it is that of -87. */
static inline float expf_(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float n = rintf(x * 1.44269504088896341f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* out[i][j] = rows[i] · x[j] over n numbers, for `b` rows of the batch, known to the compiler. What
 * the next call reads lies `ahead` bytes further on, and is requested on the way. */
static inline __attribute__((always_inline)) void dots(int b, const T *const rows[ROWS],
                                                      const float *x, ptrdiff_t stride, ptrdiff_t n,
                                                      ptrdiff_t ahead, float out[MEMBERS][ROWS]) {
  vec sums[MEMBERS][ROWS] = {{{0}}};
  ptrdiff_t k = 0;
  for (; k + LANES <= n; k += LANES) {
    vec factors[MEMBERS];
    for (int j = 0; j < b; j++) factors[j] = get_floats(x + j * stride + k);
    for (int i = 0; i < ROWS; i++) {
      __builtin_prefetch((const char *)(rows[i] + k) + ahead);
      vec weight = get_vec(rows[i] + k);
      for (int j = 0; j < b; j++) sums[j][i] += weight * factors[j];
    }
  }
  for (int j = 0; j < b; j++) {
    quad found = totals(sums[j][0], sums[j][1], sums[j][2], sums[j][3]);
    for (int i = 0; i < ROWS; i++) {
      float sum = found[i];
      for (ptrdiff_t rest = k; rest < n; rest++) sum += get(rows[i] + rest) * x[j * stride + rest];
      out[j][i] = sum;
    }
  }
}

/* The same for rows at `first` and what follows, of which there are `count` (those beyond are the
 * last again), and for any number of rows of the batch up to MEMBERS. */
static void some_dots(const T *first, int64_t count, const float *x, ptrdiff_t stride, int b,
                      ptrdiff_t n, float out[MEMBERS][ROWS]) {
  const T *rows[ROWS];
  for (int i = 0; i < ROWS; i++) rows[i] = first + (i < count ? i : count - 1) * n;
  ptrdiff_t block = ROWS * n * sizeof(T), ahead = block < AHEAD ? block : AHEAD / 4;
  switch (b) {
    case 1: dots(1, rows, x, stride, n, ahead, out); break;
    case 2: dots(2, rows, x, stride, n, ahead, out); break;
    case 3: dots(3, rows, x, stride, n, ahead, out); break;
    default: dots(4, rows, x, stride, n, ahead, out);
  }
}

#include "packed.c"

typedef struct {
  const T *weight, *bias;                    /* bias: of a LayerNorm, else null */
} Norm;

typedef struct {
  Norm input_norm, post_norm;                /* (H) */
  Norm attn_out_norm, mlp_out_norm;          /* (H), of what is added; or null */
  Norm q_norm, k_norm;                       /* (D), or null */
  Matrix qkv, o, down;                       /* ((Hq + 2 Hkv) D, H) (H, Hq D) (H, I) */
  Matrix gate_up;                            /* (2 I, H), without a gate (I, H) */
  const T *qkv_bias, *o_bias, *gate_up_bias, *down_bias; /* or null */
  const float *cos, *sin;                    /* (positions, R): of x and of x with halves swapped */
  T *keys, *values;                          /* of row 0, head 0 */
  const T *prompt_keys, *prompt_values;      /* of head 0, token 0; or null */
  int64_t window;                            /* tokens seen, the new one included; 0: all */
} Layer;

typedef struct {
  int64_t layers, hidden, intermediate, vocabulary, heads, kv_heads, dim;
  int64_t rotated;                           /* R, of the D dimensions of a head */
  int64_t norm_kind, activation, gated;
  int64_t parallel;                          /* the MLP reads what attention reads */
  int64_t row_stride, head_stride, prompt_stride; /* of the cache, in elements; of a head of prompts */
  float eps, embedding_scale, score_scale;
  Norm norm;                                 /* (H) */
  const T *embedding;                        /* (V, H) */
  Matrix head;                               /* (V, H) */
  const Layer *layer;
  /* of the most rows there may be: (B, H) (B, H) (B, (Hq + 2 Hkv) D) (B, Hq D) (B, I) (B, V) */
  float *x, *added, *qkv, *attended, *acted, *logits;
  float *scratch;                            /* of each thread: `scratch_floats` */
  int64_t scratch_floats;
  float *planes;                             /* of each thread: `planes_floats`, see packed.c */
  int64_t planes_floats;
} Step;

/* values = act(values), in place. */
static inline void activate(const Step *s, float values[ROWS]) {
  switch (s->activation) {
    case SILU:
      for (int i = 0; i < ROWS; i++) values[i] = values[i] / (1.0f + expf_(-values[i]));
      break;
    case GELU:
      for (int i = 0; i < ROWS; i++)
        values[i] = 0.5f * values[i] * (1.0f + erff(values[i] * 0.70710678118654752f));
      break;
    default: /* x (1 + tanh(u)) / 2 is x / (1 + exp(-2 u)) */
      for (int i = 0; i < ROWS; i++) {
        float x = values[i], twice = 1.5957691216057308f * (x + 0.044715f * x * x * x);
        values[i] = x / (1.0f + expf_(-twice));
      }
  }
}

/* The part of `count` rows, in blocks of ROWS, that is this thread's. */
static void share(int64_t count, int thread, int threads, int64_t *first, int64_t *last) {
  int64_t blocks = (count + ROWS - 1) / ROWS;
  *first = blocks * thread / threads * ROWS;
  *last = blocks * (thread + 1) / threads * ROWS;
  if (*last > count) *last = count;
}

enum { STORE, ADD };

/* out (B, N) = or += x (B, K) · weightᵀ (N, K) + bias, this thread's part of N. */
static void product(const float *x, int64_t batch, int64_t k, const Matrix *weight, const T *bias,
                    int64_t n, float *out, int mode, float *planes, int thread, int threads) {
  int64_t first, last;
  ptrdiff_t stride;
  x = arranged(weight, x, batch, k, planes, &stride);
  share(n, thread, threads, &first, &last);
  for (int64_t row = first; row < last; row += ROWS) {
    int64_t count = smaller(last - row, ROWS);
    for (int64_t b = 0; b < batch; b += MEMBERS) {
      int members = smaller(batch - b, MEMBERS);
      float found[MEMBERS][ROWS];
      matrix_dots(weight, row, count, x + b * stride, stride, members, k, found);
      for (int j = 0; j < members; j++)
        for (int i = 0; i < count; i++) {
          float *place = out + (b + j) * n + row + i;
          float value = found[j][i] + (bias ? get(bias + row + i) : 0.0f);
          *place = mode == ADD ? *place + value : value;
        }
    }
  }
}

/* acted (B, I) = act(x · gateᵀ) · (x · upᵀ), or act(x · upᵀ), this thread's part of I. */
static void feed(const Step *s, const Layer *layer, const float *x, int64_t batch, int thread,
                 int threads) {
  int64_t first, last, k = s->hidden, n = s->intermediate;
  const T *bias = layer->gate_up_bias;
  const Matrix *weight = &layer->gate_up;
  ptrdiff_t stride;
  x = arranged(weight, x, batch, k, s->planes + thread * s->planes_floats, &stride);
  share(n, thread, threads, &first, &last);
  for (int64_t row = first; row < last; row += ROWS) {
    int64_t count = smaller(last - row, ROWS);
    for (int64_t b = 0; b < batch; b += MEMBERS) {
      int members = smaller(batch - b, MEMBERS);
      float gate[MEMBERS][ROWS], up[MEMBERS][ROWS];
      matrix_dots(weight, row, count, x + b * stride, stride, members, k, gate);
      if (s->gated) matrix_dots(weight, n + row, count, x + b * stride, stride, members, k, up);
      for (int j = 0; j < members; j++) {
        float *out = s->acted + (b + j) * n + row;
        if (bias)
          for (int i = 0; i < count; i++) gate[j][i] += get(bias + row + i);
        activate(s, gate[j]);
        if (s->gated)
          for (int i = 0; i < count; i++)
            out[i] = gate[j][i] * (up[j][i] + (bias ? get(bias + n + row + i) : 0.0f));
        else
          for (int i = 0; i < count; i++) out[i] = gate[j][i];
      }
    }
  }
}

/* out = x / sqrt(mean(x²) + eps) · weight, or another kind of norm, of n numbers; may be in place. */
static inline void norm_one(const Step *s, Norm norm, const float *x, int64_t n, float *out) {
  float shift = 0.0f, square = 0.0f;
  if (s->norm_kind == LAYER) {
#pragma omp simd reduction(+ : shift)
    for (int64_t i = 0; i < n; i++) shift += x[i];
    shift /= n;
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; i++) square += (x[i] - shift) * (x[i] - shift);
  float scale = 1.0f / sqrtf(square / n + s->eps);
  if (norm.bias)
    for (int64_t i = 0; i < n; i++)
      out[i] = (x[i] - shift) * scale * get(norm.weight + i) + get(norm.bias + i);
  else if (s->norm_kind == RMS_OFFSET)
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * (1.0f + get(norm.weight + i));
  else
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * get(norm.weight + i);
}

/* out (B, H) = norm(x (B, H)) */
static void norm(const Step *s, Norm norm, int64_t batch, float *out) {
  for (int64_t b = 0; b < batch; b++)
    norm_one(s, norm, s->x + b * s->hidden, s->hidden, out + b * s->hidden);
}

/* A query or key of D numbers, normed where there is a norm, the first R rotated, and scaled. */
static void turn(const Step *s, const Layer *layer, const float *x, Norm norm, int64_t position,
                 float scale, float *out) {
  int64_t d = s->dim, rotated = s->rotated, half = rotated / 2;
  const float *cos = layer->cos + position * rotated, *sin = layer->sin + position * rotated;
  float normed[d];
  if (norm.weight) {
    norm_one(s, norm, x, d, normed);
    x = normed;
  }
  for (int64_t i = 0; i < half; i++) {
    out[i] = (x[i] * cos[i] + x[i + half] * sin[i]) * scale;
    out[i + half] = (x[i + half] * cos[i + half] + x[i] * sin[i + half]) * scale;
  }
  for (int64_t i = rotated; i < d; i++) out[i] = x[i] * scale;
}

/* scores[g][at + t] = q[g] · keys[t] for `count` keys of D numbers. */
static void score(const Step *s, const float *q, const T *keys, int64_t count, int64_t at,
                  int64_t tokens, float *scores) {
  int64_t d = s->dim, group = s->heads / s->kv_heads;
  for (int64_t t = 0; t < count; t += ROWS) {
    int64_t some = smaller(count - t, ROWS);
    for (int64_t g = 0; g < group; g += MEMBERS) {
      int queries = smaller(group - g, MEMBERS);
      float found[MEMBERS][ROWS];
      some_dots(keys + t * d, some, q + g * d, d, queries, d, found);
      for (int j = 0; j < queries; j++)
        for (int i = 0; i < some; i++) scores[(g + j) * tokens + at + t + i] = found[j][i];
    }
  }
}

/* out[g] += sum over t of shares[g][at + t] · values[t], in the order of t, for `b` queries. */
static inline __attribute__((always_inline)) void some_weigh(int b, const float *share,
                                                            int64_t tokens, const T *values,
                                                            int64_t count, int64_t d, float *out) {
  int64_t i = 0;
  for (; i + LANES <= d; i += LANES) {
    vec sums[MEMBERS];
    for (int j = 0; j < b; j++) sums[j] = get_floats(out + j * d + i);
    for (int64_t t = 0; t < count; t++) {
      vec value = get_vec(values + t * d + i);
      for (int j = 0; j < b; j++) sums[j] += share[j * tokens + t] * value;
    }
    for (int j = 0; j < b; j++) memcpy(out + j * d + i, &sums[j], sizeof(vec));
  }
  for (; i < d; i++)
    for (int j = 0; j < b; j++)
      for (int64_t t = 0; t < count; t++)
        out[j * d + i] += share[j * tokens + t] * get(values + t * d + i);
}

static void weigh(const Step *s, const float *shares, const T *values, int64_t count, int64_t at,
                  int64_t tokens, float *out) {
  int64_t d = s->dim, group = s->heads / s->kv_heads;
  /* Values come from memory once: those of so many tokens stay near while all lanes are summed. */
  for (int64_t t = 0; t < count; t += NEAR) {
    int64_t some = smaller(count - t, NEAR);
    const T *those = values + t * d;
    for (int64_t g = 0; g < group; g += MEMBERS) {
      const float *share = shares + g * tokens + at + t;
      switch (smaller(group - g, MEMBERS)) {
        case 1: some_weigh(1, share, tokens, those, some, d, out + g * d); break;
        case 2: some_weigh(2, share, tokens, those, some, d, out + g * d); break;
        case 3: some_weigh(3, share, tokens, those, some, d, out + g * d); break;
        default: some_weigh(4, share, tokens, those, some, d, out + g * d);
      }
    }
  }
}

/* Attention of one row and KV head: the queries of its group over `shared` tokens of the prompts'
 * memory from `start` on and over the row's `own` tokens and the new one, which joins them at its
 * position. What has left the layer's window is not read. */
static void attend(const Step *s, const Layer *layer, int64_t row, int64_t head, int64_t start,
                   int64_t shared, int64_t own, int64_t position, float *scratch) {
  int64_t d = s->dim, group = s->heads / s->kv_heads, held = shared + own + 1;
  const float *qkv = s->qkv + row * (s->heads + 2 * s->kv_heads) * d;
  T *keys = layer->keys + row * s->row_stride + head * s->head_stride;
  T *values = layer->values + row * s->row_stride + head * s->head_stride;
  float *q = scratch, *scores = scratch + group * d;
  float *out = s->attended + (row * s->heads + head * group) * d;

  float key[d];
  turn(s, layer, qkv + (s->heads + head) * d, layer->k_norm, position, 1.0f, key);
  for (int64_t i = 0; i < d; i++) {
    keys[own * d + i] = rounded(key[i]);
    values[own * d + i] = rounded(qkv[(s->heads + s->kv_heads + head) * d + i]);
  }
  for (int64_t g = 0; g < group; g++)
    turn(s, layer, qkv + (head * group + g) * d, layer->q_norm, position, s->score_scale,
         q + g * d);

  int64_t tokens = layer->window ? smaller(layer->window, held) : held;
  int64_t mine = smaller(tokens, own + 1), prompts = tokens - mine; /* the last ones of each */
  int64_t prompt = head * s->prompt_stride + (start + shared - prompts) * d;
  keys += (own + 1 - mine) * d;
  values += (own + 1 - mine) * d;
  if (prompts) score(s, q, layer->prompt_keys + prompt, prompts, 0, tokens, scores);
  score(s, q, keys, mine, prompts, tokens, scores);
  for (int64_t g = 0; g < group; g++) {
    float *line = scores + g * tokens, top = line[0], mass = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t t = 1; t < tokens; t++) top = line[t] > top ? line[t] : top;
    for (int64_t t = 0; t < tokens; t++) line[t] = expf_(line[t] - top);
#pragma omp simd reduction(+ : mass)
    for (int64_t t = 0; t < tokens; t++) mass += line[t];
    float scale = 1.0f / mass;
    for (int64_t t = 0; t < tokens; t++) line[t] *= scale;
  }
  memset(out, 0, group * d * sizeof *out);
  if (prompts) weigh(s, scores, layer->prompt_values + prompt, prompts, 0, tokens, out);
  weigh(s, scores, values, mine, prompts, tokens, out);
}

typedef struct {
  int arrived, round, asleep;
} Gate;

static void rest(Gate *gate, int round) {
#ifdef __linux__
  __atomic_add_fetch(&gate->asleep, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_futex, &gate->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
  __atomic_sub_fetch(&gate->asleep, 1, __ATOMIC_SEQ_CST);
#else
  sched_yield();
#endif
}

static inline void pause_(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Returns when all threads have come here. */
static void meet(Gate *gate, int threads) {
  if (threads == 1) return;
  int round = __atomic_load_n(&gate->round, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&gate->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
    __atomic_store_n(&gate->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&gate->round, round + 1, __ATOMIC_SEQ_CST);
#ifdef __linux__
    if (__atomic_load_n(&gate->asleep, __ATOMIC_SEQ_CST))
      syscall(SYS_futex, &gate->round, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
#endif
    return;
  }
  for (int looks = 0; __atomic_load_n(&gate->round, __ATOMIC_ACQUIRE) == round; looks++)
    if (looks < LOOKS)
      pause_();
    else
      rest(gate, round);
}

/* x (B, H) += in (B, K) · weightᵀ + bias, normed before it is added where there is a norm. */
static void add(const Step *s, const float *in, int64_t batch, int64_t k, const Matrix *weight,
                const T *bias, Norm norm, Gate *gate, int thread, int threads) {
  int64_t h = s->hidden;
  float *planes = s->planes + thread * s->planes_floats;
  if (!norm.weight) {
    product(in, batch, k, weight, bias, h, s->x, ADD, planes, thread, threads);
    return;
  }
  product(in, batch, k, weight, bias, h, s->added, STORE, planes, thread, threads);
  meet(gate, threads);
  for (int64_t b = thread; b < batch; b += threads) {
    float *added = s->added + b * h;
    norm_one(s, norm, added, h, added);
    for (int64_t i = 0; i < h; i++) s->x[b * h + i] += added[i];
  }
}

/* tokens, starts, shared, own and offsets are those of `batch` rows, the first ones of the cache. A
 * row's positions begin at its offset. */
void ember_step(const Step *s, const int64_t *tokens, const int64_t *starts, const int64_t *shared,
                const int64_t *own, const int64_t *offsets, int64_t batch, int asked) {
  int64_t h = s->hidden, width = (s->heads + 2 * s->kv_heads) * s->dim, tasks = batch * s->kv_heads;
  Gate gate = {0};
#pragma omp parallel num_threads(asked)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float *normed = s->scratch + thread * s->scratch_floats, *scratch = normed + batch * h;
    float *planes = s->planes + thread * s->planes_floats;
    for (int64_t b = thread; b < batch; b += threads)
      for (int64_t i = 0; i < h; i++)
        s->x[b * h + i] = get(s->embedding + tokens[b] * h + i) * s->embedding_scale;
    meet(&gate, threads);
    for (const Layer *layer = s->layer; layer < s->layer + s->layers; layer++) {
      norm(s, layer->input_norm, batch, normed);
      product(normed, batch, h, &layer->qkv, layer->qkv_bias, width, s->qkv, STORE, planes, thread,
              threads);
      meet(&gate, threads);
      for (int64_t task = thread; task < tasks; task += threads) {
        int64_t row = task / s->kv_heads;
        attend(s, layer, row, task % s->kv_heads, starts[row], shared[row], own[row],
               offsets[row] + shared[row] + own[row], scratch);
      }
      if (s->parallel) norm(s, layer->post_norm, batch, normed);
      meet(&gate, threads);
      add(s, s->attended, batch, s->heads * s->dim, &layer->o, layer->o_bias, layer->attn_out_norm,
          &gate, thread, threads);
      if (!s->parallel) {
        meet(&gate, threads);
        norm(s, layer->post_norm, batch, normed);
      }
      feed(s, layer, normed, batch, thread, threads);
      meet(&gate, threads);
      add(s, s->acted, batch, s->intermediate, &layer->down, layer->down_bias, layer->mlp_out_norm,
          &gate, thread, threads);
      meet(&gate, threads);
    }
    norm(s, s->norm, batch, normed);
    product(normed, batch, h, &s->head, NULL, s->vocabulary, s->logits, STORE, planes, thread, threads);
    meet(&gate, threads); /* not at the end of the region, which is OpenMP's */
  }
}

/* out (B, N) = x (B, K) times each of `count` matrices in turn, of which the last one's result stays:
 * what a product takes by itself. */
void ember_products(const Matrix *weights, int64_t count, const float *x, int64_t batch, int64_t n,
                    int64_t k, float *out, float *planes, int64_t planes_floats, int asked) {
#pragma omp parallel num_threads(asked)
  {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (const Matrix *weight = weights; weight < weights + count; weight++)
      product(x, batch, k, weight, NULL, n, out, STORE, planes + thread * planes_floats, thread,
              threads);
  }
}
