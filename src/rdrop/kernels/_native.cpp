/* The rows of a batch on a CPU: both terms of the objective and the gradient of the logits.
 *
 * Called by `rdrop.kernels.native`, which checks everything, with addresses and strides and nothing of torch. The work of
 * a row is in _row.h, compiled once for each instruction set; the widest one that the processor has is taken at run time.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define MAX_PASSES 16

enum { SYMMETRIC_KL, KL, JS, MSE };

typedef struct {
    int passes, divergence, labelled;
    unsigned moves; /* bit k: the divergence sends a gradient into pass k */
    int64_t classes, label;
    const float *z[MAX_PASSES], *soft, *weight;
    float *gradient[MAX_PASSES];
    const float *next[MAX_PASSES]; /* the row after this one, a hint for the cache that may point anywhere */
    float smoothing, task_rate, distance_rate; /* the rates are the gradients of the two terms */
    float task, distance;
    float z_tail[MAX_PASSES][16], gradient_tail[MAX_PASSES][16], soft_tail[16], weight_tail[16]; /* what does not fill a vector */
    float top[MAX_PASSES], total[MAX_PASSES], inverse[MAX_PASSES], log_total[MAX_PASSES], mean_score[MAX_PASSES], mass, share;
} Row;

typedef struct {
    void (*measure)(Row *), (*write_gradient)(Row *);
    void (*widen)(const uint16_t *, float *, int64_t);
    void (*narrow)(const float *, uint16_t *, int64_t);
} Walks;

static void set_total(Row *row, int k, float total)
{
    row->total[k] = total;
    row->inverse[k] = 1 / total;
    row->log_total[k] = logf(total);
}

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define WIDTH 16
#define NAME(x) x##_avx512
#include "_row.h"
#define TARGET __attribute__((target("avx2,fma")))
#define WIDTH 8
#define NAME(x) x##_avx2
#include "_row.h"
#endif
#define TARGET
#define WIDTH 4
#define NAME(x) x##_base
#include "_row.h"

static const struct {
    const char *name;
    const Walks *walks;
} SETS[] = {
#if defined(__x86_64__)
    {"avx512", &walks_avx512},
    {"avx2", &walks_avx2},
#endif
#if defined(__aarch64__)
    {"neon", &walks_base},
#else
    {"base", &walks_base},
#endif
};
#define SET_COUNT (int)(sizeof SETS / sizeof *SETS)

typedef struct {
    int half, passes, divergence, threads;
    unsigned moves;
    double smoothing;
    Py_ssize_t outer, inner, classes; /* rows are outer * inner, the two axes that most strides can be brought down to */
    Py_ssize_t logits, pass_stride, outer_stride, inner_stride;
    Py_ssize_t labels, soft, keep, weight; /* int64 (rows), float (rows, classes), bool (rows), float (classes); or 0 */
    Py_ssize_t kept;                       /* float (rows, 3 passes + 2): what walk 3 needs to know; 0 if all walks are made at once */
    Py_ssize_t task, distance;             /* float (rows): the terms, or for walk 3 alone, their gradients */
    double task_rate, distance_rate;       /* their gradients for all walks at once, the same in every row */
    Py_ssize_t gradient;                   /* like the logits, which it may be; 0 if it is not asked for */
    Py_ssize_t gradient_pass_stride, gradient_inner, gradient_outer_stride, gradient_inner_stride;
} Call;

static const Py_ssize_t FINE = -1, NO_MEMORY = -2;

static void keep_state(const Row *row, float *kept)
{
    const size_t size = row->passes * sizeof(float);
    memcpy(kept, row->top, size);
    memcpy(kept + row->passes, row->total, size);
    memcpy(kept + 2 * row->passes, row->mean_score, size);
    kept[3 * row->passes] = row->mass;
    kept[3 * row->passes + 1] = row->share;
}

static void restore_state(Row *row, const float *kept)
{
    const size_t size = row->passes * sizeof(float);
    memcpy(row->top, kept, size);
    for (int k = 0; k < row->passes; k++) set_total(row, k, kept[row->passes + k]);
    memcpy(row->mean_score, kept + 2 * row->passes, size);
    row->mass = kept[3 * row->passes];
    row->share = kept[3 * row->passes + 1];
}

/* Row i of a call; false if its label is no class. `scratch` has room for the passes of a row in float. */
static int do_row(const Call *call, const Walks *walks, Row *row, Py_ssize_t i, float *scratch)
{
    const Py_ssize_t classes = call->classes, size = call->half ? sizeof(uint16_t) : sizeof(float);
    const Py_ssize_t from = i / call->inner * call->outer_stride + i % call->inner * call->inner_stride;
    const Py_ssize_t to = i / call->gradient_inner * call->gradient_outer_stride + i % call->gradient_inner * call->gradient_inner_stride;
    const int read_terms = call->gradient && call->kept;
    float *task = (float *)call->task + i, *distance = (float *)call->distance + i;
    float *kept = call->kept ? (float *)call->kept + i * (3 * call->passes + 2) : NULL;
    const char *z[MAX_PASSES];
    char *gradient[MAX_PASSES];
    for (int k = 0; k < call->passes; k++) {
        z[k] = (const char *)call->logits + (k * call->pass_stride + from) * size;
        gradient[k] = (char *)call->gradient + (k * call->gradient_pass_stride + to) * size;
    }
    if (call->keep && !((const uint8_t *)call->keep)[i]) {
        if (!read_terms) *task = *distance = 0;
        if (!read_terms && kept) memset(kept, 0, (3 * call->passes + 2) * sizeof *kept);
        for (int k = 0; k < call->passes && call->gradient; k++) memset(gradient[k], 0, classes * size);
        return 1;
    }
    if (call->labels) {
        row->label = ((const int64_t *)call->labels)[i];
        if (row->label < 0 || row->label >= classes) return 0;
    }
    row->soft = call->soft ? (const float *)call->soft + i * classes : NULL;
    for (int k = 0; k < call->passes; k++) {
        if (call->half) walks->widen((const uint16_t *)z[k], scratch + k * classes, classes);
        row->z[k] = call->half ? scratch + k * classes : (const float *)z[k];
        row->gradient[k] = call->half ? scratch + k * classes : (float *)gradient[k];
        row->next[k] = (const float *)z[k] + call->inner_stride;
    }
    if (read_terms) {
        restore_state(row, kept);
        row->task_rate = *task;
        row->distance_rate = *distance;
    } else {
        walks->measure(row);
        if (kept) keep_state(row, kept);
        *task = row->task;
        *distance = row->distance;
        row->task_rate = (float)call->task_rate;
        row->distance_rate = (float)call->distance_rate;
    }
    if (!call->gradient) return 1;
    walks->write_gradient(row);
    for (int k = 0; k < call->passes && call->half; k++)
        walks->narrow(row->gradient[k], (uint16_t *)gradient[k], classes);
    return 1;
}

static Py_ssize_t do_rows(const Call *call, const Walks *walks)
{
    const Py_ssize_t rows = call->outer * call->inner;
    Py_ssize_t wrong = rows;
    int no_memory = 0;
#ifdef _OPENMP
    const Py_ssize_t share = 1 + rows / (16 * call->threads);
#pragma omp parallel num_threads(call->threads) reduction(min : wrong) reduction(| : no_memory)
#endif
    {
        Row row = {};
        row.passes = call->passes, row.divergence = call->divergence, row.moves = call->moves, row.classes = call->classes;
        row.labelled = call->labels || call->soft;
        row.weight = (const float *)call->weight;
        row.smoothing = (float)call->smoothing;
        float *scratch = NULL;
        if (call->half) scratch = (float *)malloc(call->passes * call->classes * sizeof *scratch);
        no_memory = call->half && !scratch;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, share)
#endif
        for (Py_ssize_t i = 0; i < rows; i++)
            if (!no_memory && !do_row(call, walks, &row, i, scratch)) wrong = i < wrong ? i : wrong;
        free(scratch);
    }
    return no_memory ? NO_MEMORY : wrong < rows ? wrong : FINE;
}

static int supported(int set)
{
#if defined(__x86_64__)
    if (set == 0) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (set == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return set < SET_COUNT;
}

static PyObject *instruction_sets(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    PyObject *found = PyList_New(0);
    for (int set = 0; found && set < SET_COUNT; set++) {
        if (!supported(set)) continue;
        PyObject *name = PyUnicode_FromString(SETS[set].name);
        if (!name || PyList_Append(found, name)) Py_CLEAR(found);
        Py_XDECREF(name);
    }
    return found;
}

static PyObject *rows(PyObject *self, PyObject *args)
{
    (void)self;
    Call call;
    const char *name;
    if (!PyArg_ParseTuple(args, "siiiiId(nnn)n(nnn)(nnnn)n(nn)(dd)(nnnnn)", &name, &call.threads, &call.half, &call.passes, &call.divergence,
                          &call.moves, &call.smoothing, &call.outer, &call.inner, &call.classes, &call.logits, &call.pass_stride,
                          &call.outer_stride, &call.inner_stride, &call.labels, &call.soft, &call.keep, &call.weight, &call.kept,
                          &call.task, &call.distance, &call.task_rate, &call.distance_rate, &call.gradient,
                          &call.gradient_pass_stride, &call.gradient_inner, &call.gradient_outer_stride, &call.gradient_inner_stride))
        return NULL;
    const Walks *walks = NULL;
    for (int set = 0; set < SET_COUNT; set++)
        if (supported(set) && strcmp(name, SETS[set].name) == 0) walks = SETS[set].walks;
    if (!walks) return PyErr_Format(PyExc_ValueError, "this processor has no instruction set %s", name);
    if (call.passes < 1 || call.passes > MAX_PASSES)
        return PyErr_Format(PyExc_ValueError, "got %d passes; expected 1..%d", call.passes, MAX_PASSES);
    Py_ssize_t result;
    Py_BEGIN_ALLOW_THREADS
    result = do_rows(&call, walks);
    Py_END_ALLOW_THREADS
    return result == NO_MEMORY ? PyErr_NoMemory() : PyLong_FromSsize_t(result);
}

static PyMethodDef METHODS[] = {
    {"rows", rows, METH_VARARGS, "Both terms of each row, or the gradient; gives -1, or the first row whose label is no class."},
    {"instruction_sets", instruction_sets, METH_NOARGS, "Names of the instruction sets of this processor, the widest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&MODULE);
    if (module && PyModule_AddIntConstant(module, "MAX_PASSES", MAX_PASSES)) Py_CLEAR(module);
    return module;
}
