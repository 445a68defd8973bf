/* One row of the batch: the logits of its M passes, walked over in vectors of WIDTH floats.
 *
 * Included once for each instruction set, with TARGET (a function attribute), WIDTH and NAME(x) defined. The walks:
 *
 *     1. the largest logit of each pass
 *     2. sums of exponentials, mean scores and divergence, and what smoothed or soft labels need
 *     3. the gradient
 *
 * The first reads the row from memory, the others find it in the cache and meanwhile have the next row brought there.
 * Sums run in WIDTH lanes over a block of the row, and from block to block in double. The formulas are those of
 * `rdrop.kernels.fused`. Beyond the end of a row stand impossible classes, with logits of -inf, which add nothing anywhere.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET
#define BLOCK (32 * WIDTH)

typedef float NAME(floats) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t NAME(halves) __attribute__((vector_size(2 * WIDTH)));
#define floats NAME(floats)
#define ints NAME(ints)
#define halves NAME(halves)

INLINE floats NAME(all)(float x) { return x - floats{}; }

/* WIDTH values of an array of `classes` from c on; the last ones, if they are fewer, stand filled up in `tail`. */
INLINE floats NAME(load)(const float *array, const float *tail, int64_t c, int64_t classes)
{
    floats x;
    memcpy(&x, c + WIDTH <= classes ? array + c : tail, sizeof x);
    return x;
}

INLINE void NAME(store)(float *array, float *tail, int64_t c, int64_t classes, floats x)
{
    memcpy(c + WIDTH <= classes ? array + c : tail, &x, sizeof x);
}

INLINE double NAME(sum)(floats x)
{
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* exp(x) for x of at most about 88, within 2 units in the last place; exactly 0 below the smallest normal number. */
INLINE floats NAME(exp)(floats x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const ints vanishes = x < -87.33654f;
    const floats y = x * 1.44269504f + shift;
    const floats n = y - shift;
    const floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
    floats q = 1.38888889e-3f + r * 1.98412698e-4f; /* the series of exp(r), |r| <= log(2) / 2 */
    q = 8.33333333e-3f + r * q;
    q = 4.16666667e-2f + r * q;
    q = 1.66666667e-1f + r * q;
    q = 0.5f + r * q;
    q = 1.0f + r * (1.0f + r * q);
    const floats power = (floats)(((ints)y + 127) << 23);
    return vanishes ? NAME(all)(0.0f) : q * power;
}

/* log(x) for positive normal x: 2 atanh((m - 1) / (m + 1)) + e log(2), where x = m 2^e and m is within sqrt(2) of 1. */
INLINE floats NAME(log)(floats x)
{
    const ints e = ((ints)x - 0x3f3504f3) >> 23;
    const floats m = (floats)((ints)x - (e << 23));
    const floats t = (m - 1.0f) / (m + 1.0f);
    const floats u = t * t;
    const floats series = 1.0f + u * (0.333333333f + u * (0.2f + u * (0.142857143f + u * 0.111111111f)));
    return 2.0f * t * series + __builtin_convertvector(e, floats) * 0.693147181f;
}

/* Walk 1 for one pass. NaN is passed over here, and found by the exponentials. */
INLINE float NAME(largest)(const float *z, const float *tail, int64_t classes)
{
    floats high = NAME(all)(-INFINITY);
    for (int64_t c = 0; c < classes; c += WIDTH) {
        const floats x = NAME(load)(z, tail, c, classes);
        high = x > high ? x : high;
    }
    float top = high[0];
    for (int i = 1; i < WIDTH; i++) top = high[i] > top ? high[i] : top;
    return top;
}

/* Logits below the largest one of their pass, and their exponentials. A row of impossible classes becomes NaN, as in torch. */
INLINE void NAME(read)(const Row *row, int M, int64_t c, floats *x, floats *e)
{
    for (int k = 0; k < M; k++) {
        x[k] = NAME(load)(row->z[k], row->z_tail[k], c, row->classes) - row->top[k];
        e[k] = NAME(exp)(x[k]);
    }
}

/* Scores of the divergences that are linear in the logits, up to a constant of the row. Where e is 0 they do not matter.
 * They are made of differences between the logits of two passes, which are exact where the passes nearly agree.
 */
INLINE void NAME(linear_scores)(const Row *row, int M, int divergence, int64_t c, const floats *e, floats *s)
{
    const floats none = {}, first = NAME(load)(row->z[0], row->z_tail[0], c, row->classes);
    floats centre = none;
    s[0] = none;
    for (int k = 1; k < M; k++) {
        s[k] = NAME(load)(row->z[k], row->z_tail[k], c, row->classes) - first - (row->top[k] - row->top[0]);
        centre += s[k];
    }
    centre /= (float)(divergence == KL ? M - 1 : M);
    for (int k = 0; k < M; k++) {
        s[k] -= centre;
        /* Infinity - infinity, if e is not 0: a class that is impossible in the first pass and possible in this one. */
        if (M > 2) s[k] = s[k] == s[k] ? s[k] : NAME(all)(INFINITY);
        s[k] = e[k] == 0.0f ? none : s[k];
    }
}

/* Scores of the others, from log-probabilities and probabilities. */
INLINE void NAME(other_scores)(int M, int divergence, const floats *log_p, const floats *p, floats *s)
{
    const floats none = {};
    floats high = log_p[0], total = none;
    if (divergence == JS) {
        for (int k = 1; k < M; k++) high = log_p[k] > high ? log_p[k] : high;
        for (int k = 0; k < M; k++) total += NAME(exp)(log_p[k] - high);
        const floats centre = high + NAME(log)(total / (float)M);
        for (int k = 0; k < M; k++) s[k] = p[k] == 0.0f ? none : log_p[k] - centre;
    } else {
        for (int k = 0; k < M; k++) total += p[k];
        for (int k = 0; k < M; k++) s[k] = p[k] - total / (float)M;
    }
}

/* Weights of the classes in the task loss, and which of them are possible in all passes. */
INLINE ints NAME(possible)(const Row *row, int M, int64_t c, const floats *x, floats *weight)
{
    ints open = ~ints{};
    for (int k = 0; k < M; k++) open &= x[k] > -INFINITY;
    *weight = NAME(all)(1.0f);
    if (row->weight) *weight = NAME(load)(row->weight, row->weight_tail, c, row->classes);
    return open;
}

/* Walks 1 and 2: the two terms of a row, and what walk 3 needs to know of it. */
INLINE void NAME(measure)(Row *row, int M, int divergence)
{
    const int spread = row->labelled && (row->soft || row->smoothing > 0), linear = divergence == SYMMETRIC_KL || divergence == KL;
    const floats none = {}, one = none + 1.0f;
    double total[MAX_PASSES] = {}, score[MAX_PASSES] = {}, distance = 0;
    double open_count = 0, open_weight = 0, open_log = 0, soft_weight = 0, soft_log = 0;
    floats x[MAX_PASSES], e[MAX_PASSES], s[MAX_PASSES];
    for (int k = 0; k < M; k++) row->top[k] = NAME(largest)(row->z[k], row->z_tail[k], row->classes);
    for (int64_t start = 0; start < row->classes; start += BLOCK) {
        const int64_t end = row->classes - start < BLOCK ? row->classes : start + BLOCK;
        floats totals[MAX_PASSES] = {}, scores[MAX_PASSES] = {}, counts = none, weights = none, logs = none;
        floats soft_weights = none, soft_logs = none;
        for (int64_t c = start; c < end; c += WIDTH) {
            NAME(read)(row, M, c, x, e);
            for (int k = 0; k < M; k++) totals[k] += e[k];
            if (M > 1) __builtin_prefetch(row->next[0] + c, 0, 2); /* the other passes follow in walk 3 */
            if (M > 1 && linear) {
                NAME(linear_scores)(row, M, divergence, c, e, s);
                for (int k = 0; k < M; k++) scores[k] += e[k] * s[k];
            }
            if (!spread) continue;
            floats weight, mean = x[0];
            const ints open = NAME(possible)(row, M, c, x, &weight);
            for (int k = 1; k < M; k++) mean += x[k];
            counts += open ? one : none;
            weights += open ? weight : none;
            logs += open ? weight * mean : none;
            if (!row->soft) continue;
            const floats target = weight * NAME(load)(row->soft, row->soft_tail, c, row->classes);
            soft_weights += target;
            soft_logs += target != 0.0f ? target * mean : none;
        }
        for (int k = 0; k < M; k++) total[k] += NAME(sum)(totals[k]);
        for (int k = 0; k < M; k++) score[k] += NAME(sum)(scores[k]);
        open_count += NAME(sum)(counts);
        open_weight += NAME(sum)(weights);
        open_log += NAME(sum)(logs);
        soft_weight += NAME(sum)(soft_weights);
        soft_log += NAME(sum)(soft_logs);
    }
    double mean_log_total = 0;
    for (int k = 0; k < M; k++) {
        score[k] /= total[k];
        mean_log_total += log(total[k]) / M;
        set_total(row, k, (float)total[k]);
    }
    for (int64_t start = 0; start < row->classes && M > 1 && !linear; start += BLOCK) {
        const int64_t end = row->classes - start < BLOCK ? row->classes : start + BLOCK;
        floats scores[MAX_PASSES] = {}, squares = none;
        for (int64_t c = start; c < end; c += WIDTH) {
            NAME(read)(row, M, c, x, e);
            for (int k = 0; k < M; k++) x[k] -= row->log_total[k], e[k] *= row->inverse[k];
            NAME(other_scores)(M, divergence, x, e, s);
            for (int k = 0; k < M; k++) scores[k] += e[k] * s[k], squares += s[k] * s[k];
        }
        for (int k = 0; k < M; k++) score[k] += NAME(sum)(scores[k]);
        if (divergence == MSE) distance += NAME(sum)(squares) * 2 / (M - 1);
    }
    for (int k = 0; k < M; k++) row->mean_score[k] = (float)score[k];
    if (divergence == KL) {
        distance = score[0] - (log(total[0]) - mean_log_total) * M / (M - 1);
    } else if (divergence != MSE && M > 1) {
        for (int k = 0; k < M; k++) distance += score[k] / (divergence == JS ? M : M - 1);
    }
    row->distance = (float)distance;
    row->share = row->mass = row->task = 0;
    if (!row->labelled) return;
    open_log = open_log / M - open_weight * mean_log_total;
    soft_log = soft_log / M - soft_weight * mean_log_total;
    if (!row->soft) {
        soft_weight = row->weight ? row->weight[row->label] : 1.0f;
        soft_log = 0;
        for (int k = 0; k < M; k++) soft_log += ((double)row->z[k][row->label] - row->top[k]) / M;
        soft_log = soft_weight * (soft_log - mean_log_total);
    }
    const double hard = 1.0 - row->smoothing;
    row->share = row->smoothing > 0 ? (float)(row->smoothing / (open_count > 1 ? open_count : 1)) : 0.0f;
    row->mass = (float)(hard * soft_weight + row->share * open_weight);
    row->task = -(float)((hard * soft_weight != 0 ? hard * soft_log : 0) + row->share * open_log);
}

/* Walk 3, which may overwrite the logits that the gradient is made of. */
INLINE void NAME(write_gradient)(Row *row, int M, int divergence)
{
    const int spread = row->labelled && (row->soft || row->smoothing > 0), linear = divergence == SYMMETRIC_KL || divergence == KL;
    const float task_rate = row->labelled ? row->task_rate / M : 0.0f, hard = 1.0f - row->smoothing;
    const floats none = {};
    float bend[MAX_PASSES] = {}, pull[MAX_PASSES] = {}; /* c and w of the formula, times the gradient of the divergence */
    for (int k = 0; k < M && M > 1; k++) {
        if (!(row->moves >> k & 1)) continue;
        switch (divergence) {
        case SYMMETRIC_KL: bend[k] = pull[k] = row->distance_rate / (M - 1); break;
        case KL: *(k ? &pull[k] : &bend[k]) = row->distance_rate / (k ? M - 1 : 1); break;
        case JS: bend[k] = row->distance_rate / M; break;
        case MSE: bend[k] = 4.0f * row->distance_rate / (M - 1); break;
        }
    }
    for (int64_t c = 0; c < row->classes; c += WIDTH) {
        floats x[MAX_PASSES], p[MAX_PASSES], s[MAX_PASSES], target = none, anchor = none;
        NAME(read)(row, M, c, x, p);
        if (M > 1 && linear) NAME(linear_scores)(row, M, divergence, c, p, s);
        for (int k = 0; k < M; k++) p[k] *= row->inverse[k];
        if (spread) {
            floats weight;
            const ints open = NAME(possible)(row, M, c, x, &weight);
            target = open ? none + row->share : none;
            if (row->soft) target += hard * NAME(load)(row->soft, row->soft_tail, c, row->classes);
            target *= weight;
        }
        if (M > 1 && !linear) {
            for (int k = 0; k < M; k++) x[k] -= row->log_total[k];
            NAME(other_scores)(M, divergence, x, p, s);
        }
        for (int k = 0; k < M && divergence == SYMMETRIC_KL; k++) anchor += p[k];
        anchor = divergence == KL ? p[0] : anchor / (float)M;
        for (int k = 0; k < M; k++) {
            floats g = task_rate * (row->mass * p[k] - target);
            if (M > 1) g += bend[k] * p[k] * (s[k] - row->mean_score[k]);
            if (M > 1 && linear) g += pull[k] * (p[k] - anchor);
            NAME(store)(row->gradient[k], row->gradient_tail[k], c, row->classes, g);
            if (M == 1 || k) __builtin_prefetch(row->next[k] + c, 0, 2);
        }
    }
    const int64_t rest = row->classes % WIDTH;
    for (int k = 0; k < M && rest; k++)
        memcpy(row->gradient[k] + row->classes - rest, row->gradient_tail[k], rest * sizeof(float));
    if (row->labelled && !row->soft)
        for (int k = 0; k < M; k++)
            row->gradient[k][row->label] -= task_rate * hard * (row->weight ? row->weight[row->label] : 1.0f);
}

/* bfloat16 is the upper half of a float; rounding is to nearest, ties to even, and NaN stays NaN. */
static TARGET void NAME(widen)(const uint16_t *from, float *to, int64_t count)
{
    int64_t c = 0;
    for (; c + WIDTH <= count; c += WIDTH) {
        halves half;
        memcpy(&half, from + c, sizeof half);
        const ints x = __builtin_convertvector(half, ints) << 16;
        memcpy(to + c, &x, sizeof x);
    }
    for (; c < count; c++) {
        const uint32_t x = (uint32_t)from[c] << 16;
        memcpy(to + c, &x, sizeof x);
    }
}

INLINE halves NAME(rounded)(floats x)
{
    const ints bits = (ints)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? rounded : 0x7fc0 - ints{}, halves);
}

static TARGET void NAME(narrow)(const float *from, uint16_t *to, int64_t count)
{
    const int64_t rest = count % WIDTH;
    for (int64_t c = 0; c < count - rest; c += WIDTH) {
        floats x;
        memcpy(&x, from + c, sizeof x);
        const halves half = NAME(rounded)(x);
        memcpy(to + c, &half, sizeof half);
    }
    floats x = {};
    memcpy(&x, from + count - rest, rest * sizeof *from);
    const halves half = NAME(rounded)(x);
    memcpy(to + count - rest, &half, rest * sizeof *to);
}

/* The last values of each array, filled up to a whole vector, with classes that are impossible. */
INLINE void NAME(fill_tails)(Row *row)
{
    const int64_t rest = row->classes % WIDTH, from = row->classes - rest;
    if (!rest) return;
    for (int k = 0; k < row->passes; k++) {
        for (int i = rest; i < WIDTH; i++) row->z_tail[k][i] = -INFINITY;
        memcpy(row->z_tail[k], row->z[k] + from, rest * sizeof(float));
    }
    if (row->soft) memcpy(row->soft_tail, row->soft + from, rest * sizeof(float));
    if (row->weight) memcpy(row->weight_tail, row->weight + from, rest * sizeof(float));
}

/* The objective's choices become constants, so that their branches are gone from the loops. */
#define CHOOSE(walk)                                                                                                     \
    static TARGET void NAME(walk##_of)(Row *row)                                                                         \
    {                                                                                                                    \
        NAME(fill_tails)(row);                                                                                           \
        if (row->passes == 1)                                                                                            \
            NAME(walk)(row, 1, SYMMETRIC_KL);                                                                            \
        else if (row->passes == 2 && row->divergence == SYMMETRIC_KL)                                                    \
            NAME(walk)(row, 2, SYMMETRIC_KL);                                                                            \
        else if (row->divergence == SYMMETRIC_KL)                                                                        \
            NAME(walk)(row, row->passes, SYMMETRIC_KL);                                                                  \
        else if (row->divergence == KL)                                                                                  \
            NAME(walk)(row, row->passes, KL);                                                                            \
        else if (row->divergence == JS)                                                                                  \
            NAME(walk)(row, row->passes, JS);                                                                            \
        else                                                                                                             \
            NAME(walk)(row, row->passes, MSE);                                                                           \
    }
CHOOSE(measure)
CHOOSE(write_gradient)

static const Walks NAME(walks) = {NAME(measure_of), NAME(write_gradient_of), NAME(widen), NAME(narrow)};

#undef CHOOSE
#undef halves
#undef ints
#undef floats
#undef BLOCK
#undef INLINE
#undef NAME
#undef WIDTH
#undef TARGET
