/* Products with 4-bit weights, included by native_step.c; see packed.py.
 *
 * Sixteen bytes are 32 weights: their low nibbles and their high ones are each looked up at once, so
 * x lies in two planes of 16, the numbers that meet the low nibbles first. A weight becomes
 * float(code) * scale before it is multiplied; an overall scale is applied to the sum. A row's
 * result does not depend on what else is in the batch.
 */
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum {
  GROUP = 2 * LANES,    /* weights of 16 bytes */
  CHUNK = LANES * 16,   /* weights whose scales in E4M3 fill a vector */
  PARTS = 3,            /* of one matrix: query, key and value */
};
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

typedef struct {
  const T *dense;                            /* (N, K), or null and what follows */
  const uint8_t *codes;                      /* (N, K / 2) */
  const void *scales;                        /* (N, K / block): bits of E4M3, or float */
  const float *overall;                      /* of each part, or null */
  const float *table;                        /* (16,) */
  int64_t ends[PARTS];                       /* rows at which the parts end */
  int64_t shift;                             /* 2 ** shift weights share a scale */
  int64_t e4m3, high_first;
} Matrix;

/* table[at mod 16], lane by lane. */
static inline vec look_up(vec table, ints at) {
#if defined(__AVX512F__)
  return (vec)_mm512_permutexvar_ps((__m512i)at, (__m512)table);
#elif defined(__AVX2__)
  __m256 half[2], low, high;
  __m256i where[2];
  memcpy(&low, &table, sizeof low);
  memcpy(&high, (const char *)&table + sizeof low, sizeof high);
  memcpy(where, &at, sizeof where);
  for (int i = 0; i < 2; i++) {
    __m256 first = _mm256_permutevar8x32_ps(low, where[i]);
    __m256 second = _mm256_permutevar8x32_ps(high, where[i]);
    half[i] = _mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32(where[i], 28)));
  }
  vec out;
  memcpy(&out, half, sizeof out);
  return out;
#else
  vec out;
  for (int i = 0; i < LANES; i++) out[i] = table[at[i] & 15];
  return out;
#endif
}

/* `count` bytes at p as whole numbers, zeros after them. */
static inline ints widened(const uint8_t *p, ptrdiff_t count) {
  bytes some = {0};
  if (count >= LANES)
    memcpy(&some, p, sizeof some);
  else
    memcpy(&some, p, count);
  /* Compilers make single bytes of a conversion of vectors. */
#if defined(__AVX512F__)
  return (ints)_mm512_cvtepu8_epi32((__m128i)some);
#elif defined(__AVX2__)
  __m256i half[2] = {_mm256_cvtepu8_epi32((__m128i)some),
                     _mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)some, 8))};
  ints out;
  memcpy(&out, half, sizeof out);
  return out;
#else
  return __builtin_convertvector(some, ints);
#endif
}

/* Up to 16 numbers from E4M3. Their exponents, shifted into a float, are 120 too small. */
static inline vec from_e4m3(const uint8_t *p, ptrdiff_t count) {
  ints bits = widened(p, count);
  return (vec)((bits & 0x7f) << 20 | (bits & 0x80) << 24) * 0x1p120f;
}

/* sums[j][i] += 32 weights of row i, at `at`, times those of x[j]; of 16 the rest are zeros in x. */
static inline __attribute__((always_inline)) void group_dots(
    int b, int e4m3, const Matrix *m, const uint8_t *const codes[ROWS], const float *const scales[ROWS],
    const vec wide[ROWS], ptrdiff_t at, ptrdiff_t count, const float *x, ptrdiff_t stride,
    vec sums[MEMBERS][ROWS]) {
  const ints halves = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  vec table = get_floats(m->table), low[MEMBERS], high[MEMBERS];
  for (int j = 0; j < b; j++) {
    low[j] = get_floats(x + j * stride + at);
    high[j] = get_floats(x + j * stride + at + LANES);
  }
  for (int i = 0; i < ROWS; i++) {
    ints pair = widened(codes[i] + at / 2, count / 2);
    vec scale = e4m3 ? look_up(wide[i], halves + (int32_t)(at % CHUNK / LANES))
                     : (vec){0} + scales[i][at >> m->shift];
    vec first = look_up(table, pair) * scale, second = look_up(table, pair >> 4) * scale;
    for (int j = 0; j < b; j++) {
      sums[j][i] += first * low[j];
      sums[j][i] += second * high[j];
    }
  }
}

static inline __attribute__((always_inline)) void packed_dots(int b, int e4m3, const Matrix *m,
                                                             int64_t row, int64_t count,
                                                             const float *x, ptrdiff_t stride,
                                                             ptrdiff_t k, float out[MEMBERS][ROWS]) {
  vec sums[MEMBERS][ROWS] = {{{0}}}, wide[ROWS] = {{0}};
  const uint8_t *codes[ROWS], *small[ROWS];
  const float *scales[ROWS];
  ptrdiff_t blocks = k >> m->shift, ahead = smaller(ROWS * k / 2, AHEAD);
  for (int i = 0; i < ROWS; i++) {
    ptrdiff_t r = row + (i < count ? i : count - 1);
    codes[i] = m->codes + r * (k / 2);
    small[i] = (const uint8_t *)m->scales + r * blocks;
    scales[i] = (const float *)m->scales + r * blocks;
  }
  for (ptrdiff_t at = 0; at < k; at += CHUNK) {
    ptrdiff_t end = smaller(at + CHUNK, k), g = at;
    for (int i = 0; i < ROWS; i++) {
      __builtin_prefetch(codes[i] + at / 2 + ahead);
      __builtin_prefetch(codes[i] + at / 2 + ahead + 64);
      if (e4m3) wide[i] = from_e4m3(small[i] + at / 16, (end - at) / 16);
    }
    for (; g + GROUP <= end; g += GROUP)
      group_dots(b, e4m3, m, codes, scales, wide, g, GROUP, x, stride, sums);
    if (g < end) group_dots(b, e4m3, m, codes, scales, wide, g, end - g, x, stride, sums);
  }
  for (int j = 0; j < b; j++) {
    quad found = totals(sums[j][0], sums[j][1], sums[j][2], sums[j][3]);
    for (int i = 0; i < ROWS; i++) {
      float overall = 1.0f;
      if (m->overall) {
        int part = 0;
        while (part < PARTS - 1 && row + i >= m->ends[part]) part++;
        overall = m->overall[part];
      }
      out[j][i] = found[i] * overall;
    }
  }
}

static void some_packed_dots(const Matrix *m, int64_t row, int64_t count, const float *x,
                             ptrdiff_t stride, int b, ptrdiff_t k, float out[MEMBERS][ROWS]) {
  switch (b + MEMBERS * !m->e4m3) {
    case 1: packed_dots(1, 1, m, row, count, x, stride, k, out); break;
    case 2: packed_dots(2, 1, m, row, count, x, stride, k, out); break;
    case 3: packed_dots(3, 1, m, row, count, x, stride, k, out); break;
    case 4: packed_dots(4, 1, m, row, count, x, stride, k, out); break;
    case 5: packed_dots(1, 0, m, row, count, x, stride, k, out); break;
    case 6: packed_dots(2, 0, m, row, count, x, stride, k, out); break;
    case 7: packed_dots(3, 0, m, row, count, x, stride, k, out); break;
    default: packed_dots(4, 0, m, row, count, x, stride, k, out);
  }
}

/* out[i][j] = row i of a matrix, from `row` on, times x[j]; x as `arranged` gives it. */
static void matrix_dots(const Matrix *m, int64_t row, int64_t count, const float *x,
                        ptrdiff_t stride, int b, ptrdiff_t k, float out[MEMBERS][ROWS]) {
  if (m->dense)
    some_dots(m->dense + row * k, count, x, stride, b, k, out);
  else
    some_packed_dots(m, row, count, x, stride, b, k, out);
}

/* x (B, K) as a product with the matrix reads it, in rows of `stride`: itself, or its planes. */
static const float *arranged(const Matrix *m, const float *x, int64_t batch, int64_t k,
                             float *planes, ptrdiff_t *stride) {
  *stride = k;
  if (m->dense) return x;
  *stride = (k + GROUP - 1) / GROUP * GROUP;
  int first = m->high_first ? LANES : 0;
  for (int64_t b = 0; b < batch; b++, x += k)
    for (int64_t at = 0; at < *stride; at += GROUP)
      for (int64_t i = 0; i < LANES; i++) {
        float *out = planes + b * *stride + at;
        int inside = at + 2 * i < k;
        out[first + i] = inside ? x[at + 2 * i] : 0.0f;
        out[LANES - first + i] = inside ? x[at + 2 * i + 1] : 0.0f;
      }
  return planes;
}
