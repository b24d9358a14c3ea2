/* What the members of a run agree on: DONE between peers, the flush, planned views, re-attach.
 *
 * A model of docs/PROTOCOL.md for Spin; docs/MODEL.md maps it to the code.  ./dev model runs it at
 * the bounds of tools/model.py, and each MUT_... below, which must fail.
 *
 * Messages are facts that stay: one may be seen late, or never, or after a newer one, so loss, delay
 * and reordering need no actions of their own.  Reading a fact is the receipt.  Nobody has to act:
 * whoever does nothing from some moment on has crashed, been stopped or cut off, so every behaviour
 * with crashes is among those checked.  A process that is started again is a newcomer; a coordinator
 * that was deposed goes on.  A coordinator's write and the sends that wait for it are one action
 * (output commit): after a crash between them it is as if the event had never come, after one
 * between the sends as if some are never seen.
 *
 * Checked, by assertion: no step is committed in two epochs or by two sets of contributors, by
 * anyone, also by who crashes or is left out later; what is told COMMIT is held; no commit is
 * undone, nothing that failed is committed; an epoch has one member set; epochs never go back; all
 * members enter a planned view at one step, and no step begins both in it and in the view before.
 */
#ifndef N
#define N 3             /* peers; the last one is the newcomer where PLANS is set */
#endif
#ifndef NS
#define NS 2            /* steps */
#endif
#ifndef NG
#define NG 2            /* coordinators, one after the other */
#endif
#ifndef NE
#define NE 3            /* epochs; the first is the initial view */
#endif
#ifndef PLANS
#define PLANS 0         /* planned views: 1 the newcomer joins, 2 peer 1 leaves, 3 either */
#endif
#ifndef EXCLUDES
#define EXCLUDES 0      /* 1: the last peer begins as a member, and comes back if it is excluded */
#endif
#ifndef FAILS
#define FAILS 0         /* 1: a flush may fail a step instead of running it again */
#endif
#ifdef NAMES             /* the newcomer waits at a name that the first step does not have */
#define NAMED(s) ((s) != 0)
#else
#define NAMED(s) true
#endif

#include "state.pml"
#include "peer.pml"
#include "coordinator.pml"

init {
  atomic {
    mem[1] = FIRST_VIEW; installBy[1] = 1;
    x = 0;
    do
    :: x < N ->
       hold[x] = NO;
       if :: FIRST_VIEW & B(x) -> epoch[x] = 1; gen[x] = 1 :: else fi;
       x++
    :: else -> break
    od;
    x = 1;
    do :: x <= NG -> run Coordinator(x); x++ :: else -> break od;
    x = 0;
    do :: x < N -> run Peer(x); x++ :: else -> break od;
    x = 0
  }
}
