/* Runs compiled programs on the inputs in input.bin and writes their outputs to output.bin.

   What the programs are is in table.h: `entries`, for each a function, its inputs' and outputs' sizes, its workspace.
   Every array stands between bytes that must not change; scratch memory is full of rubbish. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

enum { GUARD = 64, RUBBISH = 0xFF };

static unsigned char *guarded(size_t size) {
    unsigned char *memory = malloc(size + 3 * GUARD);
    if (!memory) {
        fprintf(stderr, "no memory for %lu bytes\n", (unsigned long)size);
        exit(2);
    }
    memset(memory, RUBBISH, size + 3 * GUARD);
    return memory;
}

static unsigned char *inside(unsigned char *memory) {
    return (unsigned char *)(((uintptr_t)memory + 2 * GUARD - 1) / GUARD * GUARD);
}

static int is_intact(const unsigned char *memory, size_t size) {
    const unsigned char *array = inside((unsigned char *)memory);
    for (const unsigned char *byte = memory; byte < array; byte++)
        if (*byte != RUBBISH) return 0;
    for (const unsigned char *byte = array + size; byte < memory + size + 3 * GUARD; byte++)
        if (*byte != RUBBISH) return 0;
    return 1;
}

int main(void) {
    FILE *input = fopen("input.bin", "rb"), *output = fopen("output.bin", "wb");
    if (!input || !output) {
        fprintf(stderr, "cannot open input.bin or output.bin\n");
        return 2;
    }
    for (size_t p = 0; p < sizeof entries / sizeof *entries; p++) {
        const struct program *program = &entries[p];
        size_t arrays = program->inputs + program->outputs;
        unsigned char *memory[64], *workspace = guarded(program->workspace);
        void *arguments[64];
        for (size_t i = 0; i < arrays; i++) {
            size_t size = program->sizes[i];
            memory[i] = guarded(size);
            arguments[i] = inside(memory[i]);
            if (i < program->inputs && fread(arguments[i], 1, size, input) != size) {
                fprintf(stderr, "input.bin is too short\n");
                return 2;
            }
        }
        program->run(arguments, NULL, inside(workspace));
        for (size_t i = 0; i < arrays; i++) {
            if (!is_intact(memory[i], program->sizes[i])) {
                fprintf(stderr, "program %lu wrote beside array %lu\n", (unsigned long)p, (unsigned long)i);
                return 1;
            }
            if (i >= program->inputs) fwrite(arguments[i], 1, program->sizes[i], output);
            free(memory[i]);
        }
        if (!is_intact(workspace, program->workspace)) {
            fprintf(stderr, "program %lu wrote beside its workspace\n", (unsigned long)p);
            return 1;
        }
        free(workspace);
    }
    return fclose(output) ? 2 : 0;
}
