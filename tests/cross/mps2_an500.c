/* Starts a Cortex-M7: the table of vectors, the floating-point unit, data in their places, then main. */
#include <stdint.h>
#include <stdlib.h>

extern uint32_t data_start, data_end, data_load, bss_start, bss_end, stack_top;
extern int main(void);
extern void initialise_monitor_handles(void); /* newlib's files, through the debugger's connection */

void _init(void) {}
void _fini(void) {}

void reset(void) {
    volatile uint32_t *coprocessors = (uint32_t *)0xE000ED88;
    *coprocessors |= 0xFu << 20; /* full access to the floating-point unit */
    __asm volatile("dsb\n isb" ::: "memory");
    for (uint32_t *to = &data_start, *from = &data_load; to < &data_end;) *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;) *to++ = 0;
    initialise_monitor_handles();
    exit(main());
}

static void fault(void) { _Exit(99); }

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&stack_top, reset, fault, fault, fault, fault, fault,
};
