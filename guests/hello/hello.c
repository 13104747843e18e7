/* hello.c - the smallest guest: say something, power off. */
#include "sdk/sdk.h"

int main(void)
{
    uint32_t base = vt_find();

    print("Hello from a guest of Vitro.\n");
    print("Its contract is at CPUID %x, version %u, features %x.\n", base, vt_version(base), vt_features(base));
    return 0;
}
