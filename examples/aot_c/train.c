/* Trains the classifier that export.py has written, and tests it on digits it has not seen.

       make
       ./train [EPOCHS [THREADS]]

   All there is of the network is in exported/step.o; this file only brings memory and data. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "step.h"

#define BATCH ((size_t)KAUN_STEP_RUN_Y_COUNT)
#define PIXELS 64
#define CLASSES 10

/* One digit of the files: as export.py writes it. */
struct digit {
    float image[PIXELS];
    int32_t label;
};

struct digits {
    struct digit *all;
    size_t count;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "train: %s: %s\n", what, why);
    exit(1);
}

static void check(int code, const char *what)
{
    if (code < 0) {
        fprintf(stderr, "train: %s: code %d, see step.h\n", what, code);
        exit(1);
    }
}

static struct digits read_digits(const char *path)
{
    struct digits digits;
    long size;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) <= 0)
        fail(path, "cannot be read; run export.py first");
    digits.count = (size_t)size / sizeof *digits.all;
    digits.all = (struct digit *)malloc((size_t)size);
    rewind(file);
    if (digits.all == NULL || fread(digits.all, sizeof *digits.all, digits.count, file) != digits.count)
        fail(path, "cannot be read");
    fclose(file);
    return digits;
}

/* The state and the workspace: memory of this program, at a multiple of 64 bytes. The step allocates nothing. */
static void *aligned_memory(size_t size)
{
    char *memory = (char *)calloc(1, size + KAUN_STEP_ALIGNMENT);
    if (memory == NULL)
        fail("memory", "there is not enough");
    return memory + (KAUN_STEP_ALIGNMENT - (uintptr_t)memory % KAUN_STEP_ALIGNMENT);
}

/* A small generator of random numbers (xorshift32), so that every machine shuffles alike. */
static uint32_t random_below(uint32_t *seed, uint32_t limit)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed % limit;
}

static void shuffle(struct digits digits, uint32_t *seed)
{
    size_t i;
    for (i = digits.count - 1; i > 0; i--) {
        size_t other = random_below(seed, (uint32_t)i + 1);
        struct digit moved = digits.all[i];
        digits.all[i] = digits.all[other];
        digits.all[other] = moved;
    }
}

/* The mean loss over the whole batches of the data. */
static double train(struct digits digits, void *state, void *workspace)
{
    static float images[BATCH][PIXELS];
    static int32_t labels[BATCH];
    float loss = 0;
    const kaun_step_run_inputs inputs = {images[0], labels};
    const kaun_step_run_outputs outputs = {&loss};
    double sum = 0;
    size_t first, i, batches = digits.count / BATCH;
    for (first = 0; first < batches * BATCH; first += BATCH) {
        for (i = 0; i < BATCH; i++) {
            memcpy(images[i], digits.all[first + i].image, sizeof images[i]);
            labels[i] = digits.all[first + i].label;
        }
        check(kaun_step_run(state, &inputs, &outputs, workspace), "kaun_step_run");
        sum += (double)loss;
    }
    return sum / (double)batches;
}

/* The share of the digits that the network reads right. */
static double accuracy(struct digits digits, const void *state, void *workspace)
{
    static float images[BATCH][PIXELS], scores[BATCH][CLASSES];
    const kaun_step_predict_inputs inputs = {images[0]};
    const kaun_step_predict_outputs outputs = {scores[0]};
    size_t first, i, right = 0;
    for (first = 0; first < digits.count; first += BATCH) {
        size_t count = digits.count - first < BATCH ? digits.count - first : BATCH;
        for (i = 0; i < count; i++) /* what the last batch lacks is left as it was, and its scores are not looked at */
            memcpy(images[i], digits.all[first + i].image, sizeof images[i]);
        check(kaun_step_predict(state, &inputs, &outputs, workspace), "kaun_step_predict");
        for (i = 0; i < count; i++) {
            int best = 0, digit;
            for (digit = 1; digit < CLASSES; digit++)
                if (scores[i][digit] > scores[i][best])
                    best = digit;
            right += best == digits.all[first + i].label;
        }
    }
    return (double)right / (double)digits.count;
}

int main(int argc, char **argv)
{
    int epochs = argc > 1 ? atoi(argv[1]) : 20, threads = argc > 2 ? atoi(argv[2]) : 1, epoch;
    struct digits training = read_digits("exported/train.raw"), test = read_digits("exported/test.raw");
    void *state = aligned_memory(KAUN_STEP_STATE_SIZE), *workspace;
    uint32_t seed = 42;

    if (threads < 1 || threads > KAUN_STEP_MOST_THREADS)
        fail("threads", "there cannot be so many");
    workspace = aligned_memory(KAUN_STEP_WORKSPACE_SIZE(threads));
    check(kaun_step_init(state), "kaun_step_init");
#if KAUN_STEP_MOST_THREADS > 1
    check(kaun_step_threads_start(workspace, threads), "kaun_step_threads_start");
#endif
    for (epoch = 1; epoch <= epochs; epoch++) {
        double loss;
        shuffle(training, &seed);
        loss = train(training, state, workspace);
        printf("epoch %2d  loss %.4f  test accuracy %.4f\n", epoch, loss, accuracy(test, state, workspace));
    }
#if KAUN_STEP_MOST_THREADS > 1
    check(kaun_step_threads_stop(workspace), "kaun_step_threads_stop");
#endif
    free(training.all);
    free(test.all);
    return 0;
}
