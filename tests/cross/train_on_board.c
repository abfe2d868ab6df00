/* Trains where there is no system and no heap: the state and the workspace are static, the data are in flash.

   data.h has BATCHES batches, `x` and `y`, and STEPS. Prints each loss; newlib's files go to the emulator, which is
   only how the state gets out. */
#include <stdio.h>

#include "data.h"
#include "step.h"

static _Alignas(KAUN_STEP_ALIGNMENT) unsigned char state[KAUN_STEP_STATE_SIZE];
static _Alignas(KAUN_STEP_ALIGNMENT) unsigned char workspace[KAUN_STEP_WORKSPACE_SIZE(1)];
static unsigned char file[KAUN_STEP_FILE_SIZE];

/* The processor's own timer, 24 bits that count down. The emulator lets it tick once in 40 instructions. */
static volatile unsigned long *const timer = (unsigned long *)0xE000E010;

int main(void) {
    if (kaun_step_init(state)) return 3;
    timer[1] = 0xFFFFFF;
    timer[2] = 0;
    timer[0] = 5;
    for (int step = 0; step < STEPS; step++) {
        float loss;
        const kaun_step_run_inputs inputs = {x[step % BATCHES], y[step % BATCHES]};
        const kaun_step_run_outputs outputs = {&loss};
        unsigned long before = timer[2];
        if (kaun_step_run(state, &inputs, &outputs, workspace)) return 4;
        unsigned long ticks = (before - timer[2]) & 0xFFFFFF;
        printf("step %d: loss %.9g in %lu ticks\n", step + 1, (double)loss, ticks);
    }
    FILE *output = fopen("step.state", "wb");
    if (!output || kaun_step_save(state, file, sizeof file)) return 5;
    return fwrite(file, 1, sizeof file, output) != sizeof file || fclose(output);
}
